//! The only unsafe code of this crate: ioctls that no safe library of ours offers.

pub(crate) mod ext4;
pub(crate) mod fiemap;
pub(crate) mod loopdev;
pub(crate) mod xfs;
