//! The operator's choices about the network of boxes: the section `[network]` of the configuration.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

use super::address::Pool;
use super::cidr::Cidr;
use super::firewall::Limits;

const PORT_DNS: u16 = 53;

/// The section `[network]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// False: boxes have a loopback interface only.
    pub enabled: bool,
    /// The addresses of boxes, two for each. The range must be unused in the namespace of the host side.
    #[serde(deserialize_with = "cidr")]
    pub pool: Cidr,
    /// The DNS servers asked for boxes. Default: those of the host's `/etc/resolv.conf`.
    #[serde(deserialize_with = "resolvers")]
    pub resolvers: Vec<SocketAddr>,
    /// Allows boxes to send mail directly (TCP port 25). Default: no, because spam is sent this way.
    pub smtp_allowed: bool,
    /// Under `custom`, allows TLS with an encrypted ClientHello (ECH) by its outer name. Default: no. Browsers send one
    /// in every handshake, mostly a decoy (GREASE) that cannot be told from a real one. A real one may be for any name
    /// on the same server.
    pub ech_allowed: bool,
    /// Certificates (PEM) trusted beside those of the host when `attach_headers` connects for a box.
    pub extra_roots: Option<PathBuf>,
    /// Limits of each box.
    pub limits: NetworkLimits,
}

/// The section `[network.limits]`: the same for every box. Zero is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkLimits {
    /// Connections at once.
    pub connections_max: u32,
    /// New connections per second; the burst allows as many more.
    pub new_connections_per_second_max: u32,
    /// Bytes per second that leave a box.
    pub send_bytes_per_second: u64,
    /// Bytes per second that reach a box.
    pub receive_bytes_per_second: u64,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            // A private range that Docker, Podman, libvirt and the usual Kubernetes networks do not take by default.
            pool: Cidr::known(10, 213, 0, 0, 16),
            resolvers: Vec::new(),
            smtp_allowed: false,
            ech_allowed: false,
            extra_roots: None,
            limits: NetworkLimits::default(),
        }
    }
}

impl Default for NetworkLimits {
    /// Enough for a package manager or a crawler, too little to fill the shared conntrack table. Bandwidth is not
    /// limited: only the operator knows the capacity.
    fn default() -> Self {
        Self {
            connections_max: 4096,
            new_connections_per_second_max: 512,
            send_bytes_per_second: 0,
            receive_bytes_per_second: 0,
        }
    }
}

impl NetworkConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// The wrong key, and the expected value.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if Pool::new(self.pool, Vec::new()).is_err() {
            return Err(("network.pool", "must be a network from /8 to /29"));
        }
        if self.extra_roots.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(("network.extra_roots", "must be an absolute path"));
        }
        let limits = &self.limits;
        if [limits.send_bytes_per_second, limits.receive_bytes_per_second].iter().any(|n| (1..65_536).contains(n)) {
            return Err(("network.limits", "bytes per second must be at least 65536, or 0 for no limit"));
        }
        Ok(())
    }
}

impl NetworkLimits {
    /// The limit of connections at once; none if zero.
    pub(super) fn connections_max(&self) -> Option<u32> {
        (self.connections_max > 0).then_some(self.connections_max)
    }

    /// The other limits, in the firewall's form.
    pub(super) fn of_firewall(&self) -> Limits {
        let some = |n: u32| (n > 0).then_some(n);
        let some64 = |n: u64| (n > 0).then_some(n);
        Limits {
            new_per_second_max: some(self.new_connections_per_second_max),
            send_bytes_per_second: some64(self.send_bytes_per_second),
            receive_bytes_per_second: some64(self.receive_bytes_per_second),
        }
    }
}

fn cidr<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error: crate::error::Error| serde::de::Error::custom(error.chain()))
}

/// `ADDRESS` or `ADDRESS:PORT`.
fn resolvers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let read = |text: &String| {
        let plain = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT_DNS));
        plain.or_else(|_| text.parse()).map_err(|_| {
            serde::de::Error::custom(format!(
                "network.resolvers: '{text}' is not an address like 192.0.2.53 or 192.0.2.53:53"
            ))
        })
    };
    texts.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_checked() {
        let read = |text: &str| toml::from_str::<NetworkConfig>(text);
        let config =
            read("pool = \"10.1.0.0/20\"\nresolvers = [\"192.0.2.1\", \"192.0.2.2:5353\", \"[2001:db8::1]:53\"]");
        let config = config.expect("good");
        assert_eq!(config.pool.prefix(), 20);
        let ports: Vec<u16> = config.resolvers.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [53, 5353, 53]);
        for bad in ["pool = \"10.1.0.1/20\"", "resolvers = [\"dns.example\"]", "colour = 1", "[limits]\nx = 1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for bad in ["pool = \"10.1.0.0/30\"", "extra_roots = \"ca.pem\"", "[limits]\nsend_bytes_per_second = 5"] {
            assert!(read(bad).expect(bad).check().is_err(), "{bad}");
        }
        assert!(NetworkConfig::default().check().is_ok());
        assert_eq!(NetworkLimits { connections_max: 0, ..NetworkLimits::default() }.connections_max(), None);
    }
}
