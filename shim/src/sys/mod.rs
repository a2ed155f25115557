//! Every raw call of this crate.
//!
//! Invariant: nothing here decides; each function is one kernel call (or one indivisible pair) with a safe signature.
