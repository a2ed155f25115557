//! The pieces that rules, sets and elements are made of: an expression, a value, and expressions with a state.

use super::nfta::{connlimit, counter, data, expr, limit};
use crate::netlink::Attrs;

/// A packet on a virtual link may be 64 KiB long (GSO); it must pass even a low limit.
const BURST_BYTES: u32 = 128 << 10;

/// An expression by name.
pub(super) fn expression(name: &str, content: &Attrs) -> Attrs {
    Attrs::new().text(expr::NAME, name).nested(expr::DATA, content)
}

/// A value in a register or element (`NFTA_DATA_VALUE`).
pub(super) fn value(bytes: &[u8]) -> Attrs {
    Attrs::new().bytes(data::VALUE, bytes)
}

/// `counter packets PACKETS bytes BYTES`
pub(super) fn counter(packets: u64, bytes: u64) -> Attrs {
    expression("counter", &Attrs::new().be64(counter::BYTES, bytes).be64(counter::PACKETS, packets))
}

/// `limit rate over N/second burst N packets`
pub(super) fn rate_over(per_second: u32) -> Attrs {
    expression("limit", &rate(per_second.into(), per_second, limit::PKTS).be32(limit::FLAGS, limit::F_INV))
}

/// `limit rate N/second burst N packets`
pub(super) fn rate_up_to(per_second: u32) -> Attrs {
    expression("limit", &rate(per_second.into(), per_second, limit::PKTS))
}

/// `limit rate over N bytes/second burst ... bytes`; the kernel adds one second's worth to the burst.
pub(super) fn bytes_over(per_second: u64) -> Attrs {
    expression("limit", &rate(per_second, BURST_BYTES, limit::PKT_BYTES).be32(limit::FLAGS, limit::F_INV))
}

fn rate(per_second: u64, burst: u32, of: u32) -> Attrs {
    let each_second = Attrs::new().be64(limit::RATE, per_second).be64(limit::UNIT, 1);
    each_second.be32(limit::BURST, burst).be32(limit::TYPE, of)
}

/// `ct count over N`
pub(super) fn connections_over(count: u32) -> Attrs {
    let data = Attrs::new().be32(connlimit::COUNT, count).be32(connlimit::FLAGS, connlimit::F_INV);
    expression("connlimit", &data)
}
