//! Device rules: the plain data, the meaning of a list, and its translation to the v1 controller.
//!
//! The meaning, for both backends: each requested kind of access (read, write, mknod) is decided on its own by the
//! LAST rule that names it and matches the device; what no rule decides is denied; a request is granted when every
//! kind in it is. (runc's and crun's test of a whole request against one rule lets `rw` through a rule list that
//! denies `w` after allowing `rwm`.)

use std::fmt;

use serde::{Deserialize, Serialize};

/// The type of device nodes that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Block and character devices.
    #[serde(rename = "a")]
    All,
    /// Block devices.
    #[serde(rename = "b")]
    Block,
    /// Character devices.
    #[serde(rename = "c")]
    Char,
}

/// A set of kinds of access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

impl Access {
    /// Make a node. The bits are those of `BPF_DEVCG_ACC_*`.
    pub const MKNOD: Self = Self(1);
    /// Open for reading.
    pub const READ: Self = Self(2);
    /// Open for writing.
    pub const WRITE: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    /// Reads a string of `r`, `w`, `m`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bits = 0;
        for b in text.bytes() {
            bits |= match b {
                b'r' => Self::READ.0,
                b'w' => Self::WRITE.0,
                b'm' => Self::MKNOD.0,
                _ => return None,
            };
        }
        (bits != 0).then_some(Self(bits))
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn bits(self) -> u8 {
        self.0
    }

    pub(super) const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.0 & flag.0 != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a set of `r`, `w` and `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessError;

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("device access is not one or more of the letters r, w and m")
    }
}

impl std::error::Error for AccessError {}

impl TryFrom<String> for Access {
    type Error = AccessError;

    fn try_from(text: String) -> Result<Self, AccessError> {
        Self::parse(&text).ok_or(AccessError)
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        access.to_string()
    }
}

/// One rule. `None` for a number means any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Grant or refuse.
    pub allow: bool,
    /// The type of nodes.
    pub kind: DeviceKind,
    /// Major number.
    #[serde(default)]
    pub major: Option<u32>,
    /// Minor number.
    #[serde(default)]
    pub minor: Option<u32>,
    /// The kinds of access.
    pub access: Access,
}

impl DeviceRule {
    /// A rule for every device and every access.
    #[must_use]
    pub const fn all(allow: bool) -> Self {
        Self { allow, kind: DeviceKind::All, major: None, minor: None, access: Access::ALL }
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allow { "allow" } else { "deny" };
        let kind = match self.kind {
            DeviceKind::All => 'a',
            DeviceKind::Block => 'b',
            DeviceKind::Char => 'c',
        };
        write!(f, "{word} {kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

fn number(n: Option<u32>) -> String {
    n.map_or_else(|| "*".to_owned(), |n| n.to_string())
}

/// The state of the v1 controller: a default, and exceptions from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct V1Program {
    pub(super) default_allow: bool,
    pub(super) exceptions: Vec<Exception>,
}

/// A set of devices of one kind, and the access that differs from the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    block: bool,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), Access::from_bits(self.access))
    }
}

impl Exception {
    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.block == other.block && meet(self.major, other.major) && meet(self.minor, other.minor)
    }

    fn covers(&self, other: &Self) -> bool {
        let over = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.block == other.block && over(self.major, other.major) && over(self.minor, other.minor)
    }
}

/// A rule whose effect the v1 controller cannot hold: it carves a hole into a wider exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inexpressible(pub(super) DeviceRule);

impl V1Program {
    /// Folds a rule list. Begins from "deny all", as the list's meaning does, not from what the parent had.
    pub(super) fn fold(rules: &[DeviceRule]) -> Result<Self, Inexpressible> {
        let mut program = Self { default_allow: false, exceptions: Vec::new() };
        for rule in rules {
            let any = rule.major.is_none() && rule.minor.is_none();
            if rule.kind == DeviceKind::All && any && rule.access == Access::ALL {
                program = Self { default_allow: rule.allow, exceptions: Vec::new() };
                continue;
            }
            for block in [true, false] {
                let wanted = match rule.kind {
                    DeviceKind::All => true,
                    DeviceKind::Block => block,
                    DeviceKind::Char => !block,
                };
                if wanted {
                    let part = Exception { block, major: rule.major, minor: rule.minor, access: rule.access.bits() };
                    program.add(rule.allow, part).map_err(|()| Inexpressible(*rule))?;
                }
            }
        }
        program.close();
        Ok(program)
    }

    fn add(&mut self, allow: bool, part: Exception) -> Result<(), ()> {
        if allow != self.default_allow {
            let same = |e: &&mut Exception| (e.block, e.major, e.minor) == (part.block, part.major, part.minor);
            match self.exceptions.iter_mut().find(same) {
                Some(e) => e.access |= part.access,
                None => self.exceptions.push(part),
            }
            return Ok(());
        }
        // Back to the default for `part`: take its access out of the exceptions inside it.
        for e in &mut self.exceptions {
            if e.overlaps(&part) && e.access & part.access != 0 {
                if !part.covers(e) {
                    return Err(());
                }
                e.access &= !part.access;
            }
        }
        self.exceptions.retain(|e| e.access != 0);
        Ok(())
    }

    /// With "deny" as the default the kernel wants ONE exception that has all of the requested access: give each
    /// exception what the wider ones around it grant, and crossing ones (`1:*` and `*:3`) their meeting point.
    fn close(&mut self) {
        if self.default_allow {
            return;
        }
        for i in 0..self.exceptions.len() {
            for j in 0..i {
                let (a, b) = (self.exceptions[i], self.exceptions[j]);
                if a.overlaps(&b) && !a.covers(&b) && !b.covers(&a) && a.access != b.access {
                    let (major, minor) = (a.major.or(b.major), a.minor.or(b.minor));
                    self.exceptions.push(Exception { block: a.block, major, minor, access: a.access | b.access });
                }
            }
        }
        let wide = self.exceptions.clone();
        for e in &mut self.exceptions {
            e.access |= wide.iter().filter(|w| w.covers(e)).fold(0, |bits, w| bits | w.access);
        }
        let mut seen: Vec<Exception> = Vec::new();
        self.exceptions.retain(|e| {
            !seen.contains(e) && {
                seen.push(*e);
                true
            }
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition at the head of this file, implemented literally.
    pub(in crate::cgroup) fn naive(rules: &[DeviceRule], block: bool, major: u32, minor: u32, access: u8) -> bool {
        let decide = |bit: u8| {
            let matching = rules.iter().rev().find(|r| {
                let kind = match r.kind {
                    DeviceKind::All => true,
                    DeviceKind::Block => block,
                    DeviceKind::Char => !block,
                };
                kind && r.major.is_none_or(|m| m == major)
                    && r.minor.is_none_or(|m| m == minor)
                    && r.access.bits() & bit != 0
            });
            matching.is_some_and(|r| r.allow)
        };
        access != 0 && [1, 2, 4].into_iter().filter(|b| access & b != 0).all(decide)
    }

    /// The v1 kernel's test: `match_exception` and `match_exception_partial` of security/device_cgroup.c.
    fn v1_kernel(program: &V1Program, block: bool, major: u32, minor: u32, access: u8) -> bool {
        let on = |e: &&Exception| {
            e.block == block && e.major.is_none_or(|m| m == major) && e.minor.is_none_or(|m| m == minor)
        };
        let mut matching = program.exceptions.iter().filter(on);
        if program.default_allow {
            !matching.any(|e| e.access & access != 0)
        } else {
            matching.any(|e| access & !e.access == 0)
        }
    }

    pub(in crate::cgroup) fn rules() -> impl Strategy<Value = Vec<DeviceRule>> {
        let kind = prop::sample::select(vec![DeviceKind::All, DeviceKind::Block, DeviceKind::Char]);
        let number = || prop::option::of(prop::sample::select(vec![0_u32, 1, 3, u32::MAX]));
        let rule =
            (any::<bool>(), kind, number(), number(), 1_u8..8).prop_map(|(allow, kind, major, minor, access)| {
                DeviceRule { allow, kind, major, minor, access: Access::from_bits(access) }
            });
        let rule = prop_oneof![8 => rule, 1 => any::<bool>().prop_map(DeviceRule::all)];
        prop::collection::vec(rule, 0..10)
    }

    pub(in crate::cgroup) fn requests() -> impl Iterator<Item = (bool, u32, u32, u8)> {
        let numbers = [0_u32, 1, 2, 3, u32::MAX];
        [true, false].into_iter().flat_map(move |block| {
            numbers.into_iter().flat_map(move |major| {
                numbers.into_iter().flat_map(move |minor| (1..8).map(move |access| (block, major, minor, access)))
            })
        })
    }

    #[test]
    fn a_hole_in_a_wider_exception_is_refused() {
        let allow =
            DeviceRule { allow: true, kind: DeviceKind::Char, major: Some(1), minor: None, access: Access::ALL };
        let hole = DeviceRule { allow: false, minor: Some(3), access: Access::WRITE, ..allow };
        assert_eq!(V1Program::fold(&[allow, hole]), Err(Inexpressible(hole)));
        let kept = V1Program::fold(&[hole, allow]).unwrap();
        assert_eq!(kept.exceptions.iter().map(ToString::to_string).collect::<Vec<_>>(), ["c 1:* rwm"]);
    }

    #[test]
    fn access_text() {
        assert_eq!(Access::parse("rwm"), Some(Access::ALL));
        assert_eq!(Access::parse("mr").unwrap().to_string(), "rm");
        assert_eq!(Access::parse(""), None);
        assert_eq!(Access::parse("x"), None);
        let json = serde_json::to_string(&DeviceRule::all(true)).unwrap();
        assert_eq!(serde_json::from_str::<DeviceRule>(&json).unwrap(), DeviceRule::all(true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn v1_never_grants_what_the_list_denies(rules in rules()) {
            let Ok(program) = V1Program::fold(&rules) else { return Ok(()) };
            for (block, major, minor, access) in requests() {
                let (v1, meant) =
                    (v1_kernel(&program, block, major, minor, access), naive(&rules, block, major, minor, access));
                prop_assert_eq!(v1, meant, "{} {}:{} {}", block, major, minor, access);
            }
        }
    }
}
