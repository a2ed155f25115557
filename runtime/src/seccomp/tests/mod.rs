//! Tests of the compiler and of the profiles, on a machine of our own (no privileges, no real filter).

mod assembler;
mod profiles;
mod property;
