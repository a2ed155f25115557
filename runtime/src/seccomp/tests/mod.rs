//! Tests of the compiler and the profiles.
