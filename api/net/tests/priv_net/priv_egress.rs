//! The egress proxy behind the firewall's redirection.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use icebox_net::authority::Authority;
use icebox_net::denial::Denial;
use icebox_net::egress::{Egress, EgressConfig, NameSource, SlotLimits};
use icebox_net::firewall::ProxyPorts;
use icebox_net::policy::{BoxPolicy, DomainPattern};
use icebox_net::secret::SealingKey;
use icebox_net::sockets::Sockets;
use icebox_net::table::{BoxNet, NetTable, OnDenial};

use crate::world::{DNS_PORT, SITE, SITE_2, UPLINK, World};

/// The world's own proxy has the usual one.
const PORT: u16 = 41_081;

struct NoNames;

impl NameSource for NoNames {
    fn addresses<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Vec<Ipv4Addr>> {
        Box::pin(async { Vec::new() })
    }
}

/// A ClientHello with this name and nothing else.
fn hello(name: &str) -> Vec<u8> {
    let listed = |content: &[u8]| [&(content.len() as u16).to_be_bytes()[..], content].concat();
    let names = listed(&[&[0][..], &listed(name.as_bytes())].concat());
    let extensions = listed(&[&[0, 0][..], &listed(&names)].concat());
    let body = [&[3, 3][..], &[7; 32], &[0], &listed(&[0x13, 1]), &[1, 0], &extensions].concat();
    let message = [&[1, 0][..], &listed(&body)].concat();
    [&[22, 3, 1][..], &listed(&message)].concat()
}

/// What comes back of what is said; an error if it is cut.
fn say(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    let count = stream.read(&mut back)?;
    back.truncate(count);
    Ok(back)
}

#[test]
fn priv_names_are_checked_where_the_firewall_redirects() {
    let mut world = World::new();
    let ports = ProxyPorts { dns: DNS_PORT, egress: PORT };
    world.start_with(icebox_net::HostConfig { ports, ..World::config() });
    let policy = BoxPolicy::Custom {
        domains: vec![DomainPattern::parse("good.example").expect("pattern")],
        allowed: vec![],
        denied: vec!["198.51.100.9/32".parse().expect("network")],
    };
    let b = world.add_box(policy.of_firewall());
    let net = Arc::new(BoxNet::new(&b.id, "account", b.pair, policy, None));
    let hour = Duration::from_secs(3600);
    net.names.answered("good.example", &[SITE, SITE_2, UPLINK], hour);
    let table = Arc::new(NetTable::default());
    table.insert(Arc::clone(&net));
    let folder = tempfile::tempdir().expect("folder");
    let key = SealingKey::load_or_create(&folder.path().join("key")).expect("key");
    let authority = Authority::load_or_create(&folder.path().join("authority"), &key).expect("authority");
    let config = EgressConfig {
        listen: (Ipv4Addr::UNSPECIFIED, PORT).into(),
        pool: World::config().pool,
        extra_roots: None,
        ech_allowed: false,
        slots: SlotLimits { all: 100, per_account: 50, per_box: 10 },
    };
    let denials: Arc<Mutex<Vec<Denial>>> = Arc::default();
    let noted = Arc::clone(&denials);
    let told: OnDenial = Arc::new(move |_, denial| noted.lock().expect("denials").push(denial));
    let host = world.host.clone();
    let egress = world.wait(async move {
        let sockets = Arc::new(Sockets::start().await?);
        Egress::start(config, host, sockets, table, Arc::new(NoNames), Arc::new(authority), told).await
    });

    let good = hello("good.example");
    let mut stream = b.connect(SITE, 443).expect("connect");
    assert_eq!(say(&mut stream, &good).expect("echo"), good, "the site echoes");
    assert_eq!(egress.counters().open, 1);
    let mut other = b.connect(SITE, 443).expect("connect");
    assert_eq!(say(&mut other, &hello("bad.example")).expect("alert"), [21, 3, 3, 0, 2, 2, 49]);
    let mut plain = b.connect(SITE, 80).expect("connect");
    let answer = say(&mut plain, &b"GET / HTTP/1.1\r\nHost: bad.example\r\nX: 0123456789\r\n\r\n"[..]).expect("answer");
    assert!(answer.starts_with(b"HTTP/1.1 403"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(denials.lock().expect("denials").len(), 2);
    // Its own addresses and what is denied are refused by the firewall already.
    for address in [UPLINK, SITE_2] {
        assert_eq!(b.connect(address, 443).expect_err("refused").kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    drop(egress);
    assert!(say(&mut stream, b"more").map_or(true, |back| back.is_empty()), "it outlived the proxy");
}
