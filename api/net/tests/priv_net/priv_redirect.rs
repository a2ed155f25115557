//! What goes to the host's proxies instead of where it was sent.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use icebox_net::firewall::{Limits, Pin, Policy};
use icebox_net::namespace::Namespace;

use crate::packet::{Packet, UDP};
use crate::world::{
    DEADLINE, DNS_PORT, EGRESS_PORT, PLAIN_PORT, SITE, SITE_2, SITE_3, TestBox, UPLINK, World, connect, echo,
    is_silent, original, udp,
};

fn custom(allowed: &[&str], denied: &[&str]) -> Policy {
    let networks = |list: &[&str]| list.iter().map(|t| t.parse().expect("network")).collect();
    Policy::Custom { allowed: networks(allowed), denied: networks(denied) }
}

/// Where a connection ends: at a proxy, which says where it was meant to go, or at the site itself, which waits to be
/// spoken to.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Proxy(SocketAddr),
    Site,
    Refused,
}

fn end(b: &TestBox, address: Ipv4Addr, port: u16) -> End {
    let mut stream = match b.connect(address, port) {
        Ok(stream) => stream,
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => return End::Refused,
        Err(e) => panic!("{address}:{port}: {e}"),
    };
    // A site sends back what it is sent, a proxy speaks first.
    std::io::Write::write_all(&mut stream, b"hello\n").expect("send");
    let mut one = [0];
    stream.peek(&mut one).expect("an answer");
    if one[0] == b'h' { End::Site } else { End::Proxy(original(&mut stream).expect("an address")) }
}

fn proxy(address: Ipv4Addr, port: u16) -> End {
    End::Proxy((address, port).into())
}

/// Sends a datagram and answers it at the proxy; where from does the answer seem to come?
fn ask(b: &TestBox, proxy: &UdpSocket, to: SocketAddr) -> Option<SocketAddr> {
    let socket = udp(&b.namespace, b.address(), 0);
    socket.send_to(b"who is it", to).ok()?;
    let (mut buffer, begun) = ([0; 64], Instant::now());
    let (_, from) = loop {
        match proxy.recv_from(&mut buffer) {
            Ok(got) => break got,
            Err(_) if begun.elapsed() > Duration::from_millis(300) => return None,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(from.ip(), b.address(), "the proxy does not see the asking box");
    proxy.send_to(b"it is me", from).expect("answer");
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) => return Some(from),
            Err(_) if begun.elapsed() > DEADLINE => panic!("the proxy's answer does not arrive"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn priv_names_are_asked_at_the_gateway_under_every_policy() {
    let mut world = World::new();
    let proxy_socket = udp(&world.host, Ipv4Addr::UNSPECIFIED, DNS_PORT);
    for policy in [Policy::AllowAll, Policy::DenyAll, custom(&[], &[])] {
        let b = world.add_box(policy.clone());
        let gateway = b.pair.host();
        assert_eq!(end(&b, gateway, 53), proxy(gateway, 53), "{policy:?}");
        let from = ask(&b, &proxy_socket, (gateway, 53).into());
        assert_eq!(from, Some((gateway, 53).into()), "{policy:?}");
        // Not by the door it stands behind.
        assert_eq!(end(&b, gateway, DNS_PORT), End::Refused, "{policy:?}");
        assert_eq!(end(&b, gateway, EGRESS_PORT), End::Refused, "{policy:?}");
        assert_eq!(ask(&b, &proxy_socket, (gateway, DNS_PORT).into()), None, "{policy:?}");
    }
}

#[test]
fn priv_other_resolvers_are_replaced_under_custom_only() {
    let mut world = World::new();
    let proxy_socket = udp(&world.host, Ipv4Addr::UNSPECIFIED, DNS_PORT);
    let b = world.add_box(custom(&["198.51.100.0/24"], &["198.51.100.9/32"]));
    for site in [SITE, SITE_3] {
        assert_eq!(end(&b, site, 53), proxy(site, 53));
        assert_eq!(ask(&b, &proxy_socket, (site, 53).into()), Some((site, 53).into()));
        assert_eq!(end(&b, site, 853), End::Refused);
    }
    for closed in [SITE_2, [10, 0, 0, 1].into(), [169, 254, 169, 254].into(), UPLINK] {
        assert_eq!(end(&b, closed, 53), End::Refused, "{closed}");
        assert_eq!(ask(&b, &proxy_socket, (closed, 53).into()), None, "{closed}");
    }
    let free = world.add_box(Policy::AllowAll);
    assert_eq!(end(&free, SITE, 53), End::Site);
    let denied = world.add_box(Policy::DenyAll);
    assert_eq!(end(&denied, SITE, 53), End::Refused);
    assert!(is_silent(&proxy_socket));
}

#[test]
fn priv_what_only_a_name_allows_goes_to_the_proxy() {
    let mut world = World::new();
    let b = world.add_box(custom(&["198.51.100.0/24"], &["198.51.100.9/32"]));
    for port in [80, 443] {
        assert_eq!(end(&b, SITE_3, port), proxy(SITE_3, port), "neither allowed nor denied");
        assert_eq!(end(&b, SITE, port), End::Site, "allowed by its address");
        assert_eq!(end(&b, SITE_2, port), End::Refused, "denied");
        for closed in [[10, 0, 0, 1], [192, 168, 1, 1], [169, 254, 169, 254], [127, 0, 0, 1]] {
            // Its own loopback does not even leave it.
            assert_eq!(end(&b, closed.into(), port), End::Refused, "closed {closed:?}");
        }
        assert_eq!(end(&b, UPLINK, port), End::Refused, "a public address of the host's");
    }
    assert_eq!(end(&b, SITE_3, PLAIN_PORT), End::Refused);
    // A name that stands for it opens other ports, but not these, and no HTTP/3.
    world.wait(world.side().pin(b.pair, vec![Pin { address: SITE_3, time: Duration::from_secs(60) }]));
    assert_eq!(end(&b, SITE_3, PLAIN_PORT), End::Site);
    assert_eq!(end(&b, SITE_3, 443), proxy(SITE_3, 443));
    let passes = |world: &mut World, address: Ipv4Addr, port: u16, text: &str| {
        let packet = Packet { port, ..Packet::new(UDP, b.address(), address, text) };
        packet.send(&b.namespace).expect("send");
        world.seen().iter().any(|s| s.has(text))
    };
    assert!(!passes(&mut world, SITE_3, 443, "http3-by-name."), "HTTP/3 by a name");
    assert!(passes(&mut world, SITE_3, 444, "another-port-by-name."));
    assert!(passes(&mut world, SITE, 443, "http3-by-address."), "allowed by its address");
    for policy in [Policy::AllowAll, Policy::DenyAll] {
        let what = if policy == Policy::AllowAll { End::Site } else { End::Refused };
        let b = world.add_box(policy);
        assert_eq!((end(&b, SITE, 80), end(&b, SITE, 443)), (end(&b, SITE, 80), what));
    }
}

#[test]
fn priv_headers_are_added_wherever_it_goes() {
    let mut world = World::new();
    let free = world.add_box(Policy::AllowAll);
    let listed = world.add_box(custom(&["198.51.100.0/24"], &["198.51.100.9/32"]));
    let denied = world.add_box(Policy::DenyAll);
    assert_eq!((end(&free, SITE, 443), end(&listed, SITE, 443)), (End::Site, End::Site));
    for b in [&free, &listed, &denied] {
        world.wait(world.side().set_intercept_tls(b.pair, true));
    }
    for site in [SITE, SITE_3] {
        assert_eq!((end(&free, site, 443), end(&listed, site, 443)), (proxy(site, 443), proxy(site, 443)));
        assert_eq!(end(&denied, site, 443), End::Refused);
    }
    assert_eq!((end(&free, SITE, 80), end(&listed, SITE, 80)), (End::Site, End::Site), "there are none on port 80");
    assert_eq!((end(&free, SITE_2, 443), end(&listed, SITE_2, 443)), (proxy(SITE_2, 443), End::Refused));
    for closed in [UPLINK, [10, 0, 0, 1].into(), denied.pair.host(), denied.address()] {
        assert_eq!((end(&free, closed, 443), end(&listed, closed, 443)), (End::Refused, End::Refused), "{closed}");
    }
    // It is what the next process finds, too.
    world.die();
    world.start();
    assert_eq!((end(&free, SITE, 443), end(&listed, SITE, 443)), (proxy(SITE, 443), proxy(SITE, 443)));
    world.wait(world.side().set_intercept_tls(free.pair, false));
    assert_eq!((end(&free, SITE, 443), end(&listed, SITE, 443)), (End::Site, proxy(SITE, 443)));
}

#[test]
fn priv_the_way_to_a_proxy_is_counted_and_limited_too() {
    let mut world = World::new();
    world.start_limited(3);
    let b = world.add_box(custom(&[], &[]));
    let before = world.wait(world.side().counters(b.pair));
    let mut streams: Vec<TcpStream> = (0..3).map(|_| b.connect(SITE, 443).expect("connect")).collect();
    assert_eq!(end(&b, SITE, 443), End::Refused, "a fourth connection");
    for stream in &mut streams {
        original(stream).expect("an address");
        echo(stream).expect("the three go on");
    }
    let after = world.wait(world.side().counters(b.pair));
    assert!(after.sent.packets >= before.sent.packets + 9 && after.sent.bytes > 9 * 40, "{after:?}");
    assert!(after.received.packets >= before.received.packets + 9, "{after:?}");
    assert_eq!(after.refused.packets, before.refused.packets + 1, "{after:?}");
    world.start();
    let limits = Limits { new_per_second_max: Some(5), ..Limits::default() };
    world.wait(world.side().set_limits(b.pair, limits));
    let passed = (0..50).filter(|_| end(&b, SITE, 443) != End::Refused).count();
    assert!((5..50).contains(&passed), "{passed} of 50 at once");
}

#[test]
fn priv_only_boxes_reach_the_proxies() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let datagrams = udp(&world.host, Ipv4Addr::UNSPECIFIED, DNS_PORT);
    let short = |namespace: &Namespace, address: Ipv4Addr, port: u16| {
        let to = (address, port).into();
        let connect = || Ok(TcpStream::connect_timeout(&to, Duration::from_millis(200)).is_ok());
        namespace.run(connect).expect("a thread there")
    };
    assert!(connect(&world.internet, UPLINK, crate::world::HOST_PORT).is_ok(), "the host cannot be reached at all");
    for port in [DNS_PORT, EGRESS_PORT] {
        assert!(!short(&world.internet, UPLINK, port), "from the uplink, port {port}");
        assert!(!short(&world.host, Ipv4Addr::LOCALHOST, port), "from the host itself, port {port}");
        assert!(!short(&world.host, b.pair.host(), port), "from the host by a box's gateway, port {port}");
        Packet { port, ..Packet::new(UDP, SITE, UPLINK, "hello") }.send(&world.internet).expect("send");
    }
    world.seen();
    assert!(is_silent(&datagrams), "a datagram from the uplink");
    // A connection of the host's own that happens to have such a number.
    let from = udp(&world.host, UPLINK, EGRESS_PORT);
    let there = udp(&world.internet, SITE, 7);
    from.send_to(b"ask", (SITE, 7)).expect("send");
    world.seen();
    let (_, asks) = there.recv_from(&mut [0; 8]).expect("asked");
    there.send_to(b"answer", asks).expect("answer");
    let begun = Instant::now();
    while is_silent(&from) {
        assert!(begun.elapsed() < DEADLINE, "the host's own answer was dropped");
        std::thread::yield_now();
    }
}

/// The firewall cuts what went directly. What went to a proxy is the proxy's to cut.
#[test]
fn priv_a_new_policy_cuts_what_went_directly_to_ports_that_names_decide() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let mut streams: Vec<TcpStream> = [80, 443].map(|port| b.connect(SITE, port).expect("connect")).into();
    streams.iter_mut().for_each(|s| echo(s).expect("echo"));
    // A name stands for the address, but it is unknown whether these were begun by it.
    let pins = vec![Pin { address: SITE, time: Duration::from_secs(60) }];
    world.wait(world.side().set_policy(b.pair, custom(&[], &[]), pins));
    streams.iter_mut().for_each(|s| assert!(echo(s).is_err(), "it goes on without a name"));
    assert_eq!(end(&b, SITE, 443), proxy(SITE, 443));
}

/// Said again, the same policy cuts nothing; so it is when a daemon starts and attaches its boxes.
#[test]
fn priv_a_box_that_is_attached_again_keeps_its_pins_and_connections() {
    let mut world = World::new();
    let b = world.add_box(custom(&[], &[]));
    world.wait(world.side().pin(b.pair, vec![Pin { address: SITE, time: Duration::from_secs(60) }]));
    let mut stream = b.connect(SITE, PLAIN_PORT).expect("connect");
    echo(&mut stream).expect("echo");
    world.die();
    world.start();
    world.attach(&b, custom(&[], &[]), Limits::default());
    echo(&mut stream).expect("a connection that a name allowed was cut");
    echo(&mut b.connect(SITE, PLAIN_PORT).expect("connect")).expect("the pin was lost");
    world.attach(&b, custom(&["192.0.2.0/24"], &[]), Limits::default());
    assert!(echo(&mut stream).is_err(), "another policy keeps what only the old one allowed");
}
