//! `/v2`: the protocol of the public box clients.

pub mod wire;
