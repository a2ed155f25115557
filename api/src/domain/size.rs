//! Size of a box.

use serde::{Deserialize, Serialize};

/// Size class of a box. Fixed when the box is created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxSize {
    /// 2 cores, 4 GiB of memory, 5 GiB of disk.
    #[default]
    Small,
    /// 4 cores, 8 GiB of memory, 10 GiB of disk.
    Medium,
    /// 8 cores, 16 GiB of memory, 20 GiB of disk.
    Large,
}

impl BoxSize {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }

    /// Cores that the box may use at once.
    #[must_use]
    pub fn cores(self) -> u32 {
        match self {
            Self::Small => 2,
            Self::Medium => 4,
            Self::Large => 8,
        }
    }

    /// Memory limit.
    #[must_use]
    pub fn memory_bytes(self) -> u64 {
        u64::from(self.cores()) * 2 * 1024 * 1024 * 1024
    }

    /// Size of the durable disk.
    #[must_use]
    pub fn disk_gib(self) -> u32 {
        match self {
            Self::Small => 5,
            Self::Medium => 10,
            Self::Large => 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_price_list() {
        let gib = 1 << 30;
        for (size, cores, memory, disk) in
            [(BoxSize::Small, 2, 4, 5), (BoxSize::Medium, 4, 8, 10), (BoxSize::Large, 8, 16, 20)]
        {
            assert_eq!((size.cores(), size.memory_bytes() / gib, size.disk_gib()), (cores, memory, disk));
        }
    }
}
