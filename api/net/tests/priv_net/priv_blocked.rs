//! What no box can do under any policy.

use std::net::Ipv4Addr;

use icebox_net::HostConfig;
use icebox_net::firewall::Policy;

use crate::packet::{ICMP, Packet, Recorder, TCP, UDP};
use crate::world::{
    DNS_PORT, EGRESS_PORT, HOST_PORT, MTU, SITE, SITE_3, STRANGER, TestBox, UPLINK, World, connect, echo, is_silent,
    udp, write_sysctl,
};

/// Destinations that are closed to every box.
const CLOSED: [([u8; 4], &str); 17] = [
    ([10, 0, 0, 1], "private 10/8"),
    ([10, 88, 200, 1], "an address of the pool that is no box's"),
    ([10, 255, 255, 254], "the end of 10/8"),
    ([172, 16, 0, 1], "private 172.16/12"),
    ([172, 31, 255, 254], "the end of 172.16/12"),
    ([192, 168, 1, 1], "private 192.168/16"),
    ([100, 64, 0, 1], "carrier-grade NAT"),
    ([100, 127, 255, 254], "the end of carrier-grade NAT"),
    ([169, 254, 169, 254], "metadata of clouds"),
    ([169, 254, 1, 1], "link-local"),
    ([192, 0, 0, 8], "protocol assignments"),
    ([198, 18, 0, 1], "benchmarks"),
    ([198, 19, 255, 254], "the end of benchmarks"),
    ([224, 0, 0, 251], "multicast DNS"),
    ([239, 255, 255, 250], "multicast discovery"),
    ([240, 0, 0, 1], "reserved"),
    ([255, 255, 255, 255], "broadcast"),
];

/// Protocols beside ICMP, TCP and UDP.
const PROTOCOLS: [(u8, &str); 8] = [
    (2, "IGMP"),
    (4, "IP in IP"),
    (41, "IPv6 in IP"),
    (47, "GRE"),
    (50, "ESP"),
    (51, "AH"),
    (132, "SCTP"),
    (253, "an experiment"),
];

fn went_out(world: &mut World, from: &TestBox, packet: &Packet) -> bool {
    // The box's own kernel may refuse to send what is senseless; that is as good as blocked.
    let _ = packet.send(&from.namespace);
    world.seen().iter().any(|seen| seen.has(&packet.text))
}

#[test]
fn priv_what_is_allowed_passes_with_the_hosts_address() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    for protocol in [ICMP, TCP, UDP] {
        let packet = Packet::new(protocol, b.address(), SITE, &format!("allowed-{protocol}."));
        packet.send(&b.namespace).expect("send");
        let seen = world.seen();
        let found: Vec<_> = seen.iter().filter(|s| s.has(&packet.text) && s.destination == SITE).collect();
        assert!(!found.is_empty(), "protocol {protocol} did not arrive");
        assert!(found.iter().all(|s| s.source == UPLINK), "protocol {protocol} is not masqueraded: {found:?}");
    }
    echo(&mut b.connect(SITE, 80).expect("connect")).expect("echo");
    let counters = world.wait(world.side().counters(b.pair));
    assert!(counters.sent.packets >= 6 && counters.received.packets >= 3, "{counters:?}");
    assert_eq!(counters.refused.packets, 0);
    assert_eq!(world.wait(world.side().uplink()).mtu, MTU);
    let mtu = b.namespace.run(|| Ok(mtu_of_eth0())).expect("a thread there");
    assert_eq!(mtu, MTU);
}

fn mtu_of_eth0() -> u32 {
    // /sys shows the namespace it was mounted in; /proc/net shows the reader's own, but no MTU. So: a datagram that does
    // not fit and may not be cut says how much would have.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    socket.connect((SITE, 9)).expect("connect");
    let fits = |length: u32| {
        rustix::net::sockopt::set_ip_mtu_discover(&socket, rustix::net::sockopt::Ipv4PathMtuDiscovery::DO)
            .expect("do not cut");
        socket.send(&vec![0; (length - 28) as usize]).is_ok()
    };
    (600..1600).rev().find(|length| fits(*length)).expect("some length fits")
}

#[test]
fn priv_closed_destinations_are_reached_by_the_host_but_by_no_box() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    for (octets, what) in CLOSED {
        for protocol in [ICMP, TCP, UDP] {
            let text = format!("closed-{protocol}-{octets:?}.");
            let mut packet = Packet::new(protocol, UPLINK, octets.into(), &text);
            packet.send(&world.host).unwrap_or_else(|e| panic!("{what}: the host cannot send: {e}"));
            assert!(world.seen().iter().any(|s| s.has(&text)), "{what}: not even the host reaches it");
            packet.source = b.address();
            packet.text = format!("box-{text}");
            assert!(!went_out(&mut world, &b, &packet), "{what}: protocol {protocol} passed");
        }
    }
    let refused = world.wait(world.side().counters(b.pair)).refused.packets;
    assert!(refused >= 3 * 12, "only {refused} were refused by the firewall");
}

#[test]
fn priv_other_protocols_mail_and_ip_options_do_not_pass() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    for (protocol, what) in PROTOCOLS {
        let text = format!("protocol-{protocol}.");
        // To another site: without ports, two senders behind one address cannot have the same destination.
        Packet::new(protocol, UPLINK, SITE_3, &text).send(&world.host).expect("send");
        assert!(world.seen().iter().any(|s| s.has(&text)), "{what}: not even the host can send it");
        let packet = Packet::new(protocol, b.address(), SITE, &format!("box-{text}"));
        assert!(!went_out(&mut world, &b, &packet), "{what} passed");
    }
    let options = [
        ("a loose source route", vec![131, 7, 4, 192, 0, 2, 8, 0]),
        ("a strict source route", vec![137, 7, 4, 192, 0, 2, 8, 0]),
        ("a record of the route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
        ("nothing", vec![1, 1, 1, 0]),
    ];
    for (what, options) in options {
        let packet = Packet { options, ..Packet::new(UDP, b.address(), SITE, &format!("options {what}.")) };
        assert!(!went_out(&mut world, &b, &packet), "an option of {what} passed");
    }
    assert!(b.connect(SITE, 25).is_err(), "mail passed");
    assert!(b.connect(SITE, 80).is_ok(), "nothing passes at all");
    // An operator may allow mail.
    world.start_with(HostConfig { smtp_allowed: true, ..World::config() });
    echo(&mut b.connect(SITE, 25).expect("mail is allowed")).expect("echo");
    world.start();
    assert!(b.connect(SITE, 25).is_err(), "mail passes although it is forbidden again");
}

#[test]
fn priv_a_box_cannot_use_another_address() {
    let mut world = World::new();
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let sources = [
        (other.address(), "another box's"),
        (b.pair.host(), "its gateway's"),
        (other.pair.host(), "another box's gateway's"),
        (UPLINK, "the host's"),
        (SITE_3, "a stranger's"),
        (Ipv4Addr::new(10, 88, 77, 77), "one of the pool that no box has"),
        (Ipv4Addr::LOCALHOST, "the loopback's"),
        (Ipv4Addr::BROADCAST, "the broadcast's"),
    ];
    for (source, what) in sources {
        for protocol in [ICMP, TCP, UDP] {
            let packet = Packet::new(protocol, source, SITE, &format!("spoofed-{protocol}-{source}."));
            assert!(!went_out(&mut world, &b, &packet), "{what} address passed");
        }
    }
    // Without the host's own check of sources, the firewall does it alone.
    write_sysctl(&world.host, &format!("net/ipv4/conf/{}/rp_filter", b.interface()), "0");
    write_sysctl(&world.host, "net/ipv4/conf/all/rp_filter", "0");
    let spoofed = Packet::new(UDP, other.address(), SITE, "spoofed-without-rp-filter.");
    assert!(!went_out(&mut world, &b, &spoofed), "another box's address passed without rp_filter");
    let honest = Packet::new(UDP, b.address(), SITE, "honest.");
    assert!(went_out(&mut world, &b, &honest), "nothing passes at all");
}

#[test]
fn priv_boxes_do_not_reach_each_other() {
    let mut world = World::new();
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let there = Recorder::new(&other.namespace);
    crate::world::serve(&other.namespace, 80);
    echo(&mut other.connect(other.address(), 80).expect("from itself")).expect("echo");
    assert!(b.connect(other.address(), 80).is_err(), "a box was reached");
    for protocol in [ICMP, TCP, UDP] {
        let packet = Packet::new(protocol, b.address(), other.address(), &format!("neighbour-{protocol}."));
        let _ = packet.send(&b.namespace);
        world.seen();
        assert!(!there.seen().iter().any(|s| s.has(&packet.text)), "protocol {protocol} reached the other box");
    }
    // Nor does the host, by itself or for a peer on the uplink.
    assert!(connect_quickly(&world, other.address()).is_err(), "the host reached a box");
    let packet = Packet::new(UDP, UPLINK, other.address(), "from-the-host.");
    let _ = packet.send(&world.host);
    let route = Packet::new(UDP, SITE, other.address(), "from-outside.");
    world.internet_routes([10, 88, 0, 0].into());
    route.send(&world.internet).expect("send");
    world.seen();
    let seen = there.seen();
    assert!(!seen.iter().any(|s| s.has("from-the-host.")), "the host reached a box");
    assert!(!seen.iter().any(|s| s.has("from-outside.")), "the internet reached a box");
}

/// What the host sends itself is dropped without an answer, so the wait is short.
fn connect_quickly(world: &World, address: Ipv4Addr) -> std::io::Result<std::net::TcpStream> {
    let to = (address, 80).into();
    let short = std::time::Duration::from_millis(500);
    world.host.run(|| Ok(std::net::TcpStream::connect_timeout(&to, short))).expect("a thread there")
}

#[test]
fn priv_the_host_is_closed_but_for_its_proxies() {
    let mut world = World::new();
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let datagrams = udp(&world.host, Ipv4Addr::UNSPECIFIED, 9);
    let addresses = [(b.pair.host(), "gateway"), (UPLINK, "uplink"), (other.pair.host(), "other box's gateway")];
    for (address, what) in addresses {
        assert!(connect(&world.host, address, HOST_PORT).is_ok(), "the host does not listen at its {what} address");
        assert!(b.connect(address, HOST_PORT).is_err(), "a port of the host was reached by its {what} address");
        for protocol in [ICMP, TCP, UDP] {
            let packet = Packet::new(protocol, b.address(), address, &format!("host-{protocol}-{address}."));
            packet.send(&b.namespace).expect("send");
        }
        world.seen();
        assert!(is_silent(&datagrams), "a datagram reached the host by its {what} address");
    }
    for port in [DNS_PORT, EGRESS_PORT, 53] {
        assert!(b.connect(UPLINK, port).is_err(), "a proxy was reached by the uplink's address, port {port}");
        assert!(b.connect(other.pair.host(), port).is_err(), "a proxy was reached by another box's gateway");
    }
}

/// At an address of the host's that is public, and at the gateway.
#[test]
fn priv_of_all_ports_of_the_host_a_box_reaches_dns_only() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let open: Vec<u16> = (1..=u16::MAX).filter(|port| b.connect(UPLINK, *port).is_ok()).collect();
    assert!(open.is_empty(), "of all ports of the uplink's address: {open:?}");
    let open: Vec<u16> = (1..=u16::MAX).filter(|port| b.connect(b.pair.host(), *port).is_ok()).collect();
    assert_eq!(open, [53], "of all ports of the gateway");
}

#[test]
fn priv_nft_ipv6_does_not_pass_even_if_everybody_turns_it_on() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6/conf/all/disable_ipv6").exists();
    assert!(has_ipv6, "this test needs a kernel with IPv6");
    let interface = b.interface();
    for name in ["all/disable_ipv6", "eth0/disable_ipv6", "eth0/addr_gen_mode"] {
        write_sysctl(&b.namespace, &format!("net/ipv6/conf/{name}"), "0");
    }
    write_sysctl(&world.host, &format!("net/ipv6/conf/{interface}/disable_ipv6"), "0");
    write_sysctl(&world.host, "net/ipv6/conf/all/forwarding", "1");
    let before = dropped_as_not_ipv4(&world);
    // Link-local to all nodes: what a host answers to first of all.
    let send = || {
        let socket = std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).expect("bind");
        let index = rustix::net::netdevice::name_to_index(&socket, "eth0").expect("eth0");
        let to = std::net::SocketAddrV6::new("ff02::1".parse().expect("address"), 9, 0, index);
        // The address may still be tentative for a moment.
        let begun = std::time::Instant::now();
        while socket.send_to(b"ipv6", to).is_err() {
            assert!(begun.elapsed() < crate::world::DEADLINE, "the box cannot send IPv6");
            std::thread::yield_now();
        }
        Ok(())
    };
    b.namespace.run(send).expect("a thread there");
    world.seen();
    assert!(dropped_as_not_ipv4(&world) > before, "IPv6 was not dropped");
}

/// What the first rule of the chain that checks sources counted.
fn dropped_as_not_ipv4(world: &World) -> u64 {
    let text = world.nft(&["-j", "list", "chain", "inet", "icebox", "check_source"]);
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let rule = all["nftables"].as_array().expect("a list").iter().find_map(|o| o.get("rule")).expect("a rule");
    let counter = rule["expr"].as_array().expect("a list").iter().find_map(|e| e.get("counter")).expect("a counter");
    counter["packets"].as_u64().expect("a number")
}

/// Fragments are put together before any rule is evaluated, so a rule sees the ports of each fragmented packet.
#[test]
fn priv_packets_in_parts_pass_where_whole_ones_do() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let names =
        world.add_box(Policy::Custom { allowed: vec!["198.51.100.0/24".parse().expect("network")], denied: vec![] });
    let resolver = udp(&world.host, Ipv4Addr::UNSPECIFIED, DNS_PORT);
    let cases = [
        (&b, SITE, 9, true),
        (&b, [10, 0, 0, 1].into(), 9, false),
        (&b, [169, 254, 169, 254].into(), 80, false),
        (&b, UPLINK, 9, false),
        (&names, SITE, 9, true),
        (&names, SITE_3, 9, false),
        (&names, SITE, 53, false),
        (&names, SITE, 853, false),
    ];
    for (from, to, port, passes) in cases {
        let text = format!("parts-{}-{to}-{port}.", from.address());
        let packet = Packet { port, ..Packet::new(UDP, from.address(), to, &text) };
        packet.send_in_parts(&from.namespace).expect("send");
        assert_eq!(world.seen().iter().any(|s| s.has(&text)), passes, "{text}");
    }
    let mut buffer = [0; 64];
    let length = resolver.recv(&mut buffer).expect("the question for a name went to the proxy");
    assert_eq!(&buffer[..length], format!("parts-{}-{SITE}-53.", names.address()).as_bytes());
}

/// An IPv4 address in the clothes of IPv6 is an IPv4 address.
#[test]
fn priv_mapped_addresses_are_what_they_stand_for() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let reaches = |address: Ipv4Addr| {
        let to = (address.to_ipv6_mapped(), 80).into();
        let connect = || Ok(std::net::TcpStream::connect_timeout(&to, crate::world::DEADLINE));
        b.namespace.run(connect).expect("a thread there").is_ok()
    };
    assert!(reaches(SITE));
    for closed in [[10, 0, 0, 1].into(), [169, 254, 169, 254].into(), UPLINK, b.pair.host()] {
        assert!(!reaches(closed), "{closed}");
    }
}

#[test]
fn priv_the_uplink_forwards_for_boxes_only() {
    let mut world = World::new();
    let stranger = world.add_stranger();
    let forwards = || Ok(std::fs::read_to_string("/proc/sys/net/ipv4/conf/up0/forwarding").expect("a setting"));
    assert_eq!(world.host.run(forwards).expect("a thread there").trim(), "1", "boxes would get no answers");
    let seen = Recorder::new(&stranger);
    let from_host = Packet::new(UDP, [192, 168, 77, 1].into(), STRANGER, "from-the-host.");
    from_host.send(&world.host).expect("send");
    let through = Packet::new(UDP, SITE, STRANGER, "through-the-host.");
    through.send(&world.internet).expect("send");
    world.seen();
    let seen = seen.seen();
    assert!(seen.iter().any(|s| s.has(&from_host.text)), "not even the host reaches the stranger");
    assert!(!seen.iter().any(|s| s.has(&through.text)), "the host became a router");
    // The one that comes after a crash knows that Icebox has opened the uplink.
    world.die();
    world.start();
    let through = Packet::new(UDP, SITE, STRANGER, "after-a-crash.");
    let recorder = Recorder::new(&stranger);
    through.send(&world.internet).expect("send");
    world.seen();
    assert!(!recorder.seen().iter().any(|s| s.has(&through.text)), "the host became a router after a crash");
}
