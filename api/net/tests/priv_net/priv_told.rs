//! What is told of packets that do not pass.

use std::net::Ipv4Addr;
use std::time::Duration;

use icebox_net::firewall::{Limits, Policy};
use icebox_net::nflog::{Event, Refused};

use crate::packet::{ICMP, Packet, TCP, UDP};
use crate::world::{DEADLINE, HOST_PORT, SITE, SITE_2, SITE_3, TestBox, UPLINK, World, echo, write_sysctl};

fn refused(world: &mut World) -> Refused {
    match world.event(DEADLINE) {
        Some(Event::Refused(refused)) => refused,
        other => panic!("told {other:?} instead of a refusal"),
    }
}

/// One packet, and what is told of it.
fn told(world: &mut World, b: &TestBox, packet: &Packet, rule: &str) {
    packet.send(&b.namespace).expect("send");
    let told = refused(world);
    let port = matches!(packet.protocol, TCP | UDP).then_some(packet.port);
    let should = Refused {
        guest: b.address(),
        rule: told.rule,
        protocol: packet.protocol,
        destination: Some(packet.destination),
        port,
    };
    assert_eq!((told.rule, &told), (rule, &should));
}

#[test]
fn priv_every_rule_tells_whom_it_refused_what() {
    let mut world = World::new();
    let networks = |text: &str| vec![text.parse().expect("network")];
    let free = world.add_box(Policy::AllowAll);
    let denied = world.add_box(Policy::DenyAll);
    let listed =
        world.add_box(Policy::Custom { allowed: networks("198.51.100.0/24"), denied: networks("198.51.100.9/32") });
    let packet = |b: &TestBox, protocol: u8, to: Ipv4Addr, port: u16| Packet {
        port,
        ..Packet::new(protocol, b.address(), to, "told.")
    };
    told(&mut world, &denied, &packet(&denied, TCP, SITE, 80), "deny-all");
    told(&mut world, &denied, &packet(&denied, ICMP, SITE, 0), "deny-all");
    told(&mut world, &free, &packet(&free, TCP, [10, 0, 0, 1].into(), 80), "closed network");
    told(&mut world, &free, &packet(&free, UDP, [169, 254, 169, 254].into(), 80), "closed network");
    told(&mut world, &listed, &packet(&listed, TCP, SITE_2, 80), "denied_cidrs");
    told(&mut world, &listed, &packet(&listed, TCP, SITE_3, 8000), "not allowed (custom)");
    told(&mut world, &listed, &packet(&listed, UDP, SITE_3, 443), "not allowed (custom)");
    told(&mut world, &listed, &packet(&listed, TCP, SITE, 853), "other resolver");
    told(&mut world, &free, &packet(&free, TCP, SITE, 25), "port 25");
    told(&mut world, &free, &packet(&free, 47, SITE, 0), "protocol");
    told(&mut world, &free, &packet(&free, TCP, UPLINK, HOST_PORT), "host");
    told(&mut world, &free, &packet(&free, UDP, free.pair.host(), HOST_PORT), "host");
    told(&mut world, &free, &packet(&free, TCP, denied.address(), 80), "other box");
    let options = Packet { options: vec![131, 7, 4, 192, 0, 2, 8, 0], ..packet(&free, UDP, SITE, 9) };
    // The source route's last stop is what it is sent to.
    options.send(&free.namespace).expect("send");
    let of_options = refused(&mut world);
    assert_eq!((of_options.guest, of_options.rule), (free.address(), "IP options"));
    let spoofed = Packet::new(UDP, denied.address(), SITE, "spoofed.");
    spoofed.send(&free.namespace).expect("send");
    let of_spoofed = refused(&mut world);
    assert_eq!(
        (of_spoofed.guest, of_spoofed.rule),
        (free.address(), "source address"),
        "the source address is another box's"
    );
    // Nothing that passes is told.
    echo(&mut free.connect(SITE, 80).expect("connect")).expect("echo");
    assert_eq!(world.event(Duration::from_millis(200)), None);
}

#[test]
fn priv_limits_tell_what_they_refuse() {
    let mut world = World::new();
    world.start_limited(1);
    let few = world.add_box(Policy::AllowAll);
    let slow = world.new_box();
    world.attach(&slow, Policy::AllowAll, Limits { new_per_second_max: Some(1), ..Limits::default() });
    let _one = few.connect(SITE, 80).expect("connect");
    assert!(few.connect(SITE, 80).is_err());
    let told = refused(&mut world);
    assert_eq!((told.guest, told.rule, told.port), (few.address(), "too many connections", Some(80)));
    world.start();
    while slow.connect(SITE, 80).is_ok() {}
    let told = refused(&mut world);
    assert_eq!((told.guest, told.rule, told.port), (slow.address(), "too many new connections", Some(80)));
}

#[test]
fn priv_ipv6_is_told_with_the_box_it_came_from() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let interface = b.interface();
    for name in ["all/disable_ipv6", "eth0/disable_ipv6", "eth0/addr_gen_mode"] {
        write_sysctl(&b.namespace, &format!("net/ipv6/conf/{name}"), "0");
    }
    write_sysctl(&world.host, &format!("net/ipv6/conf/{interface}/disable_ipv6"), "0");
    // The box's kernel asks for routers and neighbours by itself.
    let told = refused(&mut world);
    assert_eq!((told.guest, told.rule, told.destination), (b.address(), "IPv6", None));
}

/// A box that does what it should not a thousand times is told of a few times, and another's refusal is not lost in it.
#[test]
fn priv_one_box_does_not_drown_what_is_told_of_another() {
    const SENT: u16 = 2000;
    let mut world = World::new();
    let (loud, other) = (world.add_box(Policy::DenyAll), world.add_box(Policy::DenyAll));
    let begun = std::time::Instant::now();
    for port in 1000..1000 + SENT {
        Packet { port, ..Packet::new(UDP, loud.address(), SITE, "loud.") }.send(&loud.namespace).expect("send");
    }
    let seconds = begun.elapsed().as_secs_f64();
    Packet::new(UDP, other.address(), SITE, "other.").send(&other.namespace).expect("send");
    let mut of_loud = 0;
    loop {
        let told = refused(&mut world);
        if told.guest == other.address() {
            break;
        }
        of_loud += 1;
    }
    assert!(of_loud >= 20 && f64::from(of_loud) <= 20.0 * (seconds + 1.0) + 1.0, "{of_loud} in {seconds} s");
    let counted = world.wait(world.side().counters(loud.pair)).refused.packets;
    assert!(counted >= u64::from(SENT), "all are counted, not {counted}");
}
