//! The Icebox HTTP API.
