//! The Icebox HTTP API.

pub mod cli;
