//! What the memory of a cgroup consists of. Reading only; every number is the kernel's own.

use super::Cgroup;
use super::controller::Controller;
use super::error::Result;
use super::parse::keyed;

/// The parts of a cgroup's memory, here and below, in bytes (`memory.stat`). v1 has no numbers of the kernel's own
/// memory: they are 0 there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryParts {
    /// Anonymous memory.
    pub anon: u64,
    /// Cached files, those of tmpfs and shared memory included.
    pub file: u64,
    /// tmpfs and shared memory.
    pub shmem: u64,
    /// Mapped files.
    pub mapped: u64,
    /// Cached and changed, not being written back yet.
    pub dirty: u64,
    /// Being written back.
    pub writeback: u64,
    /// Anonymous, used of late.
    pub active_anon: u64,
    /// Anonymous, not used of late.
    pub inactive_anon: u64,
    /// Cached, used of late.
    pub active_file: u64,
    /// Cached, not used of late.
    pub inactive_file: u64,
    /// Cannot be reclaimed.
    pub unevictable: u64,
    /// Anonymous, in huge pages.
    pub huge_anon: u64,
    /// Objects of the kernel that can be reclaimed, such as directory entries.
    pub slab_reclaimable: u64,
    /// Objects of the kernel that cannot.
    pub slab_unreclaimable: u64,
    /// Stacks of tasks in the kernel.
    pub kernel_stack: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Memory of the kernel for each CPU.
    pub percpu: u64,
}

impl Cgroup {
    /// The parts of the memory in use.
    ///
    /// # Errors
    /// `Unenforced(Memory)` when no memory controller is on this cgroup.
    pub fn memory_parts(&self) -> Result<MemoryParts> {
        match self.v1_dir(Controller::Memory) {
            Some(dir) => Ok(parse_v1(&dir.read("memory.stat")?)),
            None => Ok(parse_v2(&self.v2_dir(Controller::Memory, "memory.stat", "read memory")?.read("memory.stat")?)),
        }
    }
}

/// The numbers of v2 include the cgroups below.
fn parse_v2(text: &str) -> MemoryParts {
    let number = |key| keyed(text, key).unwrap_or(0);
    MemoryParts {
        anon: number("anon"),
        file: number("file"),
        shmem: number("shmem"),
        mapped: number("file_mapped"),
        dirty: number("file_dirty"),
        writeback: number("file_writeback"),
        active_anon: number("active_anon"),
        inactive_anon: number("inactive_anon"),
        active_file: number("active_file"),
        inactive_file: number("inactive_file"),
        unevictable: number("unevictable"),
        huge_anon: number("anon_thp"),
        slab_reclaimable: number("slab_reclaimable"),
        slab_unreclaimable: number("slab_unreclaimable"),
        kernel_stack: number("kernel_stack"),
        page_tables: number("pagetables"),
        percpu: number("percpu"),
    }
}

/// On v1 the numbers that include the cgroups below begin with `total_`.
fn parse_v1(text: &str) -> MemoryParts {
    let number = |key| keyed(text, key).unwrap_or(0);
    MemoryParts {
        anon: number("total_rss"),
        file: number("total_cache"),
        shmem: number("total_shmem"),
        mapped: number("total_mapped_file"),
        dirty: number("total_dirty"),
        writeback: number("total_writeback"),
        active_anon: number("total_active_anon"),
        inactive_anon: number("total_inactive_anon"),
        active_file: number("total_active_file"),
        inactive_file: number("total_inactive_file"),
        unevictable: number("total_unevictable"),
        huge_anon: number("total_rss_huge"),
        ..MemoryParts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_names_its_parts() {
        let parts =
            parse_v2("anon 8192\nfile 4096\nkernel 1\nfile_mapped 12\nslab_reclaimable 7\nslab 9\nanon_thp 2\n");
        assert_eq!((parts.anon, parts.file, parts.mapped), (8192, 4096, 12));
        assert_eq!((parts.slab_reclaimable, parts.slab_unreclaimable, parts.huge_anon), (7, 0, 2));
    }

    #[test]
    fn v1_counts_the_cgroups_below() {
        let parts = parse_v1("cache 1\nrss 2\ntotal_cache 4096\ntotal_rss 8192\ntotal_inactive_file 4095\n");
        assert_eq!((parts.file, parts.anon, parts.inactive_file, parts.slab_reclaimable), (4096, 8192, 4095, 0));
    }
}
