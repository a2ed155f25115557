//! The way out of what is looked into: which name a connection of a box is for, and headers that are added.
//!
//! Owns: nothing yet but the rules of headers.

mod headers;

pub use self::headers::{HEADERS_MAX, HeaderRules, PATTERNS_MAX, Wanted};
