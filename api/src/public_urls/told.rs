//! The addresses that a client is told for a public URL.
//!
//! The address of a port is a host name below the domain. The default domain is `localhost`, and its names mean the
//! client's own machine. Browsers and curl know that by themselves. Node, Python and other programs ask the C library, which
//! knows it only with nss-myhostname or systemd-resolved. A client that can't use the name is told the path form at the
//! address by which it reached the API.

use std::net::IpAddr;

use axum::http::uri::Authority;

use super::address::{Target, path_of};
use crate::config::PublicUrls;

/// How a port of a box is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The address that works for the client that asked: the host form or the path form.
    pub url: String,
    /// The host form. Each port is an origin of its own, as browsers need it.
    pub host_url: String,
    /// The path of the path form at the API's address, if that form is served.
    pub path: Option<String>,
}

/// The addresses of a port. `listener` is the port of the listener, and `asked` the client's `Host` header.
pub(super) fn addresses(
    config: &PublicUrls,
    target: &Target,
    listener: u16,
    asked: Option<&str>,
    local_names_resolve: bool,
) -> Addresses {
    let scheme = config.scheme();
    let port = match (scheme, config.port.unwrap_or(listener)) {
        ("http", 80) | ("https", 443) => String::new(),
        (_, port) => format!(":{port}"),
    };
    let host_url = format!("{scheme}://{}-{}.{}{port}/", target.box_id, target.port, config.domain);
    let path = config.path_form.then(|| format!("{}/", path_of(target)));
    let by_path = asked.filter(|_| !is_arranged(config)).and_then(|asked| {
        let authority = asked.parse::<Authority>().ok().filter(|name| !name.as_str().contains('@'))?;
        let path = path.as_ref().filter(|_| !resolves(authority.host(), local_names_resolve))?;
        Some(format!("http://{authority}{path}"))
    });
    Addresses { url: by_path.unwrap_or_else(|| host_url.clone()), host_url, path }
}

/// Whether the operator has decided what clients see.
fn is_arranged(config: &PublicUrls) -> bool {
    let is_local = config.domain == "localhost" || config.domain.ends_with(".localhost");
    !is_local || config.scheme.is_some() || config.port.is_some() || config.listen.is_some()
}

/// Whether a client that reached the API as `host` resolves names below `localhost`, and they lead it here.
fn resolves(host: &str, local_names_resolve: bool) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // It has resolved such a name.
    host.ends_with(".localhost")
        || ((host == "localhost" || address.is_ok_and(|address| address.is_loopback())) && local_names_resolve)
}

/// Whether the C library of this machine resolves names below `localhost`. Its configuration is read, and nothing is
/// looked up: a name server elsewhere is not asked about this.
pub(super) fn local_names_resolve() -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    knows_local_names(&read("/etc/nsswitch.conf"), &read("/etc/resolv.conf"))
}

/// nss-myhostname(8), nss-resolve(8), or the stub of systemd-resolved(8) as the name server.
fn knows_local_names(nsswitch: &str, resolv: &str) -> bool {
    let mut hosts = nsswitch.lines().filter_map(|line| line.trim().strip_prefix("hosts:"));
    let has_module =
        hosts.any(|modules| modules.split_whitespace().any(|name| matches!(name, "myhostname" | "resolve")));
    let servers = resolv.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    has_module || servers.map(str::trim).any(|server| matches!(server, "127.0.0.53" | "127.0.0.54"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(config: &PublicUrls, asked: Option<&str>, local_names_resolve: bool) -> String {
        let target = Target { box_id: "fox-1".into(), port: 3000 };
        addresses(config, &target, 7070, asked, local_names_resolve).url
    }

    #[test]
    fn a_client_is_told_an_address_that_it_can_use() {
        let local = PublicUrls::default();
        let by_name = "http://fox-1-3000.localhost:7070/";
        for (asked, resolve, url) in [
            (Some("127.0.0.1:7070"), true, by_name),
            (Some("[::1]:7070"), true, by_name),
            (Some("localhost:7070"), true, by_name),
            (Some("api.localhost:7070"), false, by_name),
            (None, false, by_name),
            (Some("127.0.0.1:7070"), false, "http://127.0.0.1:7070/preview/fox-1-3000/"),
            (Some("localhost:7070"), false, "http://localhost:7070/preview/fox-1-3000/"),
            // Another machine: its own localhost is not this one.
            (Some("10.0.0.5:7070"), true, "http://10.0.0.5:7070/preview/fox-1-3000/"),
            (Some("box.example"), true, "http://box.example/preview/fox-1-3000/"),
            // No host name.
            (Some("a@b"), false, by_name),
            (Some("a b/<script>"), false, by_name),
        ] {
            assert_eq!(told(&local, asked, resolve), url, "{asked:?} {resolve}");
        }
    }

    #[test]
    fn what_the_operator_has_arranged_is_told_to_everybody() {
        let text = |text: &str| toml::from_str::<PublicUrls>(text).expect("a configuration");
        for (config, url) in [
            ("domain = 'p.example'", "http://fox-1-3000.p.example:7070/"),
            ("port = 80", "http://fox-1-3000.localhost/"),
            ("scheme = 'https'\nport = 443", "https://fox-1-3000.localhost/"),
            ("path_form = false", "http://fox-1-3000.localhost:7070/"),
        ] {
            assert_eq!(told(&text(config), Some("127.0.0.1:7070"), false), url, "{config}");
        }
    }

    #[test]
    fn the_configuration_tells_whether_local_names_resolve() {
        for (nsswitch, resolv, resolve) in [
            ("hosts: files dns", "nameserver 192.0.2.1", false),
            ("passwd: files\nhosts:\tfiles myhostname dns", "", true),
            ("hosts: files resolve [!UNAVAIL=return] dns", "", true),
            ("hosts: files dns", "search x\nnameserver 127.0.0.53\n", true),
            ("# hosts: myhostname", "#nameserver 127.0.0.53", false),
            ("", "", false),
        ] {
            assert_eq!(knows_local_names(nsswitch, resolv), resolve, "{nsswitch} {resolv}");
        }
    }
}
