//! Boxes come and go, and so does the daemon: what is left, what is kept, what it costs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use icebox_net::error::Error;
use icebox_net::firewall::{BoxRules, Firewall, Limits, PREFIX, Policy, Settings};
use icebox_net::link::{LinkSpec, Links, Step};
use icebox_net::namespace::Namespace;

use crate::packet::{ICMP, Packet, TCP, UDP};
use crate::world::{DEADLINE, HOST_PORT, MTU, SITE, TestBox, UPLINK, World, echo};

fn links(world: &World) -> BTreeSet<String> {
    let list = || -> Result<_, Error> { Links::open()?.list() };
    world.host.run(list).expect("list").into_iter().map(|l| l.name).collect()
}

/// The kernel takes links away by itself, or the host's side does after a while.
fn wait_for_links(world: &World, expected: &BTreeSet<String>) {
    let begun = Instant::now();
    while links(world) != *expected {
        assert!(begun.elapsed() < DEADLINE, "there are {:?}, not {expected:?}", links(world));
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn spec(b: &TestBox) -> LinkSpec {
    LinkSpec { id: b.id.clone(), pair: b.pair, namespace: b.namespace.clone(), mtu: MTU }
}

fn settings() -> Settings {
    let config = World::config();
    Settings {
        pool: config.pool,
        smtp_allowed: false,
        ports: config.ports,
        connections_max: None,
        opened: vec!["up0".into()],
        guarded: true,
    }
}

fn passes(world: &mut World, b: &TestBox, text: &str) -> bool {
    let mut any = false;
    for protocol in [ICMP, TCP, UDP] {
        let _ = Packet::new(protocol, b.address(), SITE, text).send(&b.namespace);
        any |= world.seen().iter().any(|s| s.has(text));
    }
    any
}

#[test]
fn priv_nothing_is_left_of_a_box_that_was_detached() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    assert_eq!(links(&world), BTreeSet::from([b.interface()]));
    world.attach(&b, Policy::AllowAll, Limits::default());
    let mut stream = b.connect(SITE, 80).expect("connect");
    world.attach(&b, Policy::AllowAll, Limits::default());
    echo(&mut stream).expect("attaching once more cuts nothing");
    world.wait(world.side().detach(&b.id, b.pair));
    assert!(!passes(&mut world, &b, "detached."), "a detached box passes");
    world.wait(world.side().detach(&b.id, b.pair));
    // The test holds its namespace: the link does not go by itself.
    wait_for_links(&world, &BTreeSet::new());
    assert_eq!(world.wait(world.side().connections(b.pair)).count, 0);
    assert!(world.wait(world.side().sweep(Vec::new())).boxes.is_empty(), "the firewall still has it");
    // It comes back with another namespace.
    let again = TestBox { namespace: crate::world::namespace(), ..b };
    world.attach(&again, Policy::AllowAll, Limits::default());
    echo(&mut again.connect(SITE, 80).expect("connect")).expect("echo");
}

/// A daemon that dies between closing a box in and forgetting its connections leaves nothing to the address's next box.
#[test]
fn priv_connections_of_boxes_that_are_no_more_are_forgotten_at_the_next_start() {
    let mut world = World::new();
    let (gone, stays) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let (_cut, mut kept) = (gone.connect(SITE, 80).expect("connect"), stays.connect(SITE, 80).expect("connect"));
    world.wait(world.side().detach(&gone.id, gone.pair));
    world.die();
    world.start();
    assert_eq!(world.wait(world.side().connections(gone.pair)).count, 1, "it is forgotten already");
    world.wait(world.side().sweep(vec![stays.id.clone()]));
    assert_eq!(world.wait(world.side().connections(gone.pair)).count, 0);
    echo(&mut kept).expect("another box's connection was forgotten");
}

/// The kernel does its part without a daemon.
#[test]
fn priv_a_link_goes_with_its_namespace() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    world.wait(world.side().detach(&b.id, b.pair));
    assert_eq!(links(&world), BTreeSet::from([b.interface()]), "the test holds its namespace");
    world.die();
    drop(b);
    wait_for_links(&world, &BTreeSet::new());
}

/// An orderly end leaves nothing of boxes that are no more, even if their namespaces are held, and all of those that are.
#[test]
fn priv_nothing_is_left_by_a_daemon_that_stops() {
    let mut world = World::new();
    let (gone, stays) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let _open = gone.connect(SITE, 80).expect("connect");
    world.wait(world.side().detach(&gone.id, gone.pair));
    world.wait(world.side().see_off_all());
    assert_eq!(world.wait(world.side().connections(gone.pair)).count, 0);
    assert_eq!(links(&world), BTreeSet::from([stays.interface()]));
}

/// A box's addresses are another's while its link is still there: both host's ends would have the same route.
#[test]
fn priv_a_box_with_the_addresses_of_one_that_was_detached_is_the_only_one() {
    let mut world = World::new();
    let former = world.add_box(Policy::AllowAll);
    world.wait(world.side().detach(&former.id, former.pair));
    let b = TestBox { pair: former.pair, ..world.new_box() };
    world.attach(&b, Policy::AllowAll, Limits::default());
    assert_eq!(links(&world), BTreeSet::from([b.interface()]));
    echo(&mut b.connect(SITE, 80).expect("connect")).expect("echo");
    assert!(!passes(&mut world, &former, "former."), "the box that was detached passes");
}

/// A box that starts again at once gets a link again, and the old one's cleanup leaves the new one alone.
#[test]
fn priv_a_box_that_comes_back_at_once_keeps_its_new_link() {
    const ROUNDS: usize = 60;
    let mut world = World::new();
    let mut b = world.add_box(Policy::AllowAll);
    for _ in 0..ROUNDS {
        world.wait(world.side().detach(&b.id, b.pair));
        // The old namespace ends while the new link is made.
        b.namespace = crate::world::namespace();
        world.attach(&b, Policy::AllowAll, Limits::default());
    }
    let same = b.namespace.clone();
    world.wait(world.side().detach(&b.id, b.pair));
    world.attach(&TestBox { namespace: same, id: b.id.clone(), pair: b.pair }, Policy::AllowAll, Limits::default());
    // The time of a box that was detached later is over later.
    let later = world.add_box(Policy::AllowAll);
    world.wait(world.side().detach(&later.id, later.pair));
    wait_for_links(&world, &BTreeSet::from([b.interface()]));
    echo(&mut b.connect(SITE, 80).expect("connect")).expect("echo");
}

#[test]
fn priv_a_box_that_moved_to_another_namespace_gets_a_new_link() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let moved = TestBox { namespace: crate::world::namespace(), id: b.id.clone(), pair: b.pair };
    world.attach(&moved, Policy::AllowAll, Limits::default());
    echo(&mut moved.connect(SITE, 80).expect("connect")).expect("echo");
    assert!(b.connect(SITE, 80).is_err(), "the old namespace is still connected");
}

#[test]
fn priv_connections_outlive_the_daemon() {
    let mut world = World::new();
    let policy = Policy::Custom { allowed: vec!["198.51.100.0/24".parse().expect("network")], denied: Vec::new() };
    world.start_limited(2);
    let b = world.new_box();
    world.attach(&b, policy, Limits { new_per_second_max: Some(1000), ..Limits::default() });
    let mut streams = [b.connect(SITE, 80).expect("connect"), b.connect(SITE, 80).expect("connect")];
    let before = world.wait(world.side().counters(b.pair));
    world.die();
    streams.iter_mut().for_each(|s| echo(s).expect("while no daemon runs"));
    assert!(b.connect(SITE, 25).is_err(), "mail passes while no daemon runs");
    world.start_limited(2);
    streams.iter_mut().for_each(|s| echo(s).expect("after the restart"));
    assert!(b.connect(SITE, 80).is_err(), "a third connection: the limit was lost");
    let after = world.wait(world.side().counters(b.pair));
    assert!(after.sent.packets > before.sent.packets, "the counters began anew");
    let swept = world.wait(world.side().sweep(vec![b.id.clone()]));
    assert_eq!((swept.links.len(), swept.boxes.len()), (0, 0), "a box that is there was swept");
    world.wait(world.side().set_policy(b.pair, Policy::DenyAll, Vec::new()));
    streams.iter_mut().for_each(|s| assert!(echo(s).is_err(), "the new daemon's policy does not count"));
}

/// A setting of an interface, as the kernel shows it in a namespace.
fn setting(namespace: &Namespace, name: &str) -> String {
    let path = format!("/proc/sys/net/{name}");
    let read = || Ok(std::fs::read_to_string(&path));
    let text = namespace.run(read).expect("a thread there").unwrap_or_else(|e| panic!("{path}: {e}"));
    text.trim().to_owned()
}

/// The addresses of IPv6 in a namespace, by interface.
fn ipv6(namespace: &Namespace) -> Vec<String> {
    let list = || Ok(std::fs::read_to_string("/proc/thread-self/net/if_inet6").expect("the addresses of IPv6"));
    let text = namespace.run(list).expect("a thread there");
    text.lines().filter_map(|line| line.split_whitespace().last().map(str::to_owned)).collect()
}

/// They come by netlink; the kernel shows them as files too.
#[test]
fn priv_both_ends_of_a_link_have_their_settings() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    for (name, value) in [
        ("ipv4/conf/IF/forwarding", "1"),
        ("ipv4/conf/IF/rp_filter", "1"),
        ("ipv4/conf/IF/arp_ignore", "1"),
        ("ipv4/conf/IF/arp_announce", "2"),
        ("ipv4/conf/IF/arp_filter", "1"),
        ("ipv4/conf/IF/proxy_arp", "0"),
        ("ipv4/conf/IF/accept_redirects", "0"),
        ("ipv4/conf/IF/send_redirects", "0"),
        ("ipv4/conf/IF/accept_source_route", "0"),
        ("ipv4/conf/IF/route_localnet", "0"),
        ("ipv6/conf/IF/disable_ipv6", "1"),
    ] {
        assert_eq!(setting(&world.host, &name.replace("IF", &b.interface())), value, "{name}");
    }
    assert!(ipv6(&world.host).iter().all(|of| *of != b.interface()), "the host's end has IPv6");
    assert_eq!(ipv6(&b.namespace), ["lo"]);
}

/// Below an MTU of 1280 the kernel has no IPv6 on an interface, nor settings of it.
#[test]
fn priv_a_link_that_is_too_small_for_ipv6_is_made_all_the_same() {
    let mut world = World::new();
    let b = world.new_box();
    let small = LinkSpec { mtu: 1000, ..spec(&b) };
    world.host.run(|| Links::open()?.create(&small)).expect("a link");
    assert_eq!(links(&world), BTreeSet::from([b.interface()]));
    assert_eq!(ipv6(&b.namespace), ["lo"]);
}

/// A daemon that dies after any step leaves a box that reaches nothing, and what is left can be swept, or finished.
#[test]
fn priv_a_crash_between_any_two_steps_leaves_no_hole() {
    for done in 0..=Step::ALL.len() {
        let mut world = World::new();
        let b = world.new_box();
        world.die();
        let steps = || -> Result<(), Error> {
            let links = Links::open()?;
            Step::ALL[..done].iter().try_for_each(|step| links.step(*step, &spec(&b)))
        };
        world.host.run(steps).expect("steps");
        assert_eq!(links(&world).len(), usize::from(done >= 1), "after {done} steps");
        assert!(!passes(&mut world, &b, "half-made."), "a box passes after {done} steps");
        for address in [UPLINK, b.pair.host()] {
            let short = Duration::from_millis(300);
            let to = (address, HOST_PORT).into();
            let connect = || Ok(std::net::TcpStream::connect_timeout(&to, short));
            let reached = b.namespace.run(connect).expect("a thread there");
            assert!(reached.is_err(), "a box reaches the host after {done} steps");
        }
        world.start();
        if done % 2 == 0 {
            let swept = world.wait(world.side().sweep(Vec::new()));
            assert_eq!(swept.links.len(), usize::from(done >= 1), "after {done} steps");
            assert_eq!(links(&world), BTreeSet::new());
        }
        world.attach(&b, Policy::AllowAll, Limits::default());
        // Before the link was whole, the host's end may have dropped its answer to the box's question for its Ethernet
        // address; the box asks again a second later.
        let begun = Instant::now();
        while !passes(&mut world, &b, "whole.") {
            assert!(begun.elapsed() < DEADLINE, "a box that was begun cannot be finished after {done} steps");
        }
    }
}

/// The way back, and elements without a link.
#[test]
fn priv_a_crash_on_the_way_back_leaves_no_hole() {
    let mut world = World::new();
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    world.die();
    // Between the two: out of the firewall, but the link is there.
    let take_out = || -> Result<(), Error> { Firewall::open(&settings())?.remove(b.pair) };
    world.host.run(take_out).expect("take out");
    assert!(!passes(&mut world, &b, "half-gone."));
    // The link went with the box's namespace, while no daemon ran.
    world.host.run(|| Links::open()?.remove(&other.id)).expect("remove");
    world.start();
    let swept = world.wait(world.side().sweep(Vec::new()));
    assert_eq!((swept.links, swept.boxes), (vec![b.interface()], vec![other.pair]));
    assert_eq!(links(&world), BTreeSet::new());
}

#[test]
fn priv_a_link_of_another_box_is_not_touched() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let renamed = LinkSpec { namespace: crate::world::namespace(), ..spec(&b) };
    // As if the names of two boxes were the same: the alias is another's.
    let interface = b.interface();
    crate::world::netlink(&world.host, move |handle| async move {
        let message = rtnetlink::LinkUnspec::new_with_name(&interface).alias("another-box").build();
        handle.link().set(message).execute().await
    });
    let refused = world.host.run(|| Ok(Links::open()?.create(&renamed).is_err())).expect("a thread there");
    assert!(refused, "another box's link was taken");
    assert!(world.host.run(|| Ok(Links::open()?.remove(&b.id).is_err())).expect("a thread there"));
    let swept = world.wait(world.side().sweep(vec!["another-box".into(), b.id.clone()]));
    assert!(swept.links.is_empty(), "what is no box's link was swept: {swept:?}");
    assert!(links(&world).iter().all(|name| name.starts_with(PREFIX)), "the uplink is listed");
    echo(&mut b.connect(SITE, 80).expect("connect")).expect("it still works");
}

fn count(world: &World, kind: &str) -> usize {
    let text = world.nft(&["-j", "list", "table", "inet", "icebox"]);
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    all["nftables"].as_array().expect("a list").iter().filter(|o| o.get(kind).is_some()).count()
}

#[test]
fn priv_nft_two_hundred_boxes_have_the_rules_of_one_and_each_costs_the_same() {
    const BOXES: u32 = 200;
    const PART: usize = 20;
    let mut world = World::new();
    world.add_box(Policy::AllowAll);
    let (rules, chains) = (count(&world, "rule"), count(&world, "chain"));
    assert!(rules > 80 && chains == 35, "{rules} rules in {chains} chains");
    world.die();
    let add = || -> Result<Vec<Duration>, Error> {
        let mut firewall = Firewall::open(&settings())?;
        let network = |n: u32| format!("198.51.{}.0/24", n % 256).parse().expect("network");
        (1000..1000 + BOXES)
            .map(|n| {
                let pair = icebox_net::address::Pair::of((u32::from_be_bytes([10, 88, 0, 0]) + 2 * n).into());
                let policy = Policy::Custom { allowed: vec![network(n), network(n + 7)], denied: vec![network(n + 3)] };
                let limits = Limits { new_per_second_max: Some(100), ..Limits::default() };
                let begun = Instant::now();
                firewall.set(&BoxRules {
                    interface: format!("{PREFIX}{n}"),
                    pair,
                    policy,
                    limits,
                    intercept_tls: false,
                })?;
                Ok(begun.elapsed())
            })
            .collect()
    };
    let mut took = world.host.run(add).expect("add");
    assert_eq!((count(&world, "rule"), count(&world, "chain")), (rules, chains), "rules grow with boxes");
    let text = world.nft(&["list", "set", "inet", "icebox", "addresses"]);
    assert_eq!(text.matches("10.88.").count(), BOXES as usize + 1);
    let median = |part: &mut [Duration]| {
        part.sort_unstable();
        part[part.len() / 2]
    };
    let last = median(&mut took[BOXES as usize - PART..]);
    let first = median(&mut took[..PART]);
    println!("a box in the firewall: the first {PART} {first:?}, the last {PART} {last:?} (medians)");
    assert!(last < 5 * first, "the last boxes cost {last:?}, the first {first:?}");
    world.start();
    assert_eq!(world.wait(world.side().sweep(Vec::new())).boxes.len(), BOXES as usize + 1);
    let text = world.nft(&["list", "table", "inet", "icebox"]);
    assert!(!text.contains("10.88.0.") && !text.contains(&format!("{PREFIX}1")), "something is left: {text}");
}

#[test]
fn priv_nft_what_others_did_to_the_table_is_repaired() {
    let mut world = World::new();
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let rules = count(&world, "rule");
    // A running daemon would notice.
    world.die();
    // Half a box is no box.
    world.nft(&["delete", "element", "inet", "icebox", "policy_in", &format!("{{ {} }}", b.address())]);
    world.nft(&["flush", "chain", "inet", "icebox", "from_box"]);
    world.nft(&["insert", "rule", "inet", "icebox", "to_host", "accept"]);
    world.start();
    assert_eq!(count(&world, "rule"), rules, "the rules are not as they were");
    assert!(!passes(&mut world, &b, "damaged."), "a damaged box passes");
    assert!(b.connect(b.pair.host(), HOST_PORT).is_err(), "a foreign rule is still there");
    assert!(passes(&mut world, &other, "whole."), "a whole box does not pass");
    world.attach(&b, Policy::AllowAll, Limits::default());
    assert!(passes(&mut world, &b, "mended."), "the box cannot be let in again");
    // A table of the same name that is another.
    world.die();
    world.nft(&["delete", "table", "inet", "icebox"]);
    world.nft(&["add", "table", "inet", "icebox"]);
    world.nft(&["add", "set", "inet", "icebox", "boxes", "{ type ipv4_addr; }"]);
    world.nft(&["add", "element", "inet", "icebox", "boxes", "{ 10.88.0.3 }"]);
    world.start();
    assert_eq!(count(&world, "rule"), rules);
    assert!(!passes(&mut world, &b, "foreign."), "a box of a foreign table passes");
    world.attach(&b, Policy::AllowAll, Limits::default());
    assert!(passes(&mut world, &b, "again."));
}

/// A table of another version is replaced at once, with the boxes that are in it.
#[test]
fn priv_nft_a_table_of_another_version_is_replaced_with_its_boxes() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    assert!(passes(&mut world, &b, "before."));
    let before = world.wait(world.side().counters(b.pair)).sent.packets;
    world.die();
    let text = world.nft(&["list", "table", "inet", "icebox"]);
    assert!(text.contains("elements = { \"up0\" }"), "nft reads the sets another way: {text}");
    let (start, rest) = text.split_once("comment \"").expect("the table's comment says its version");
    let (_, rest) = rest.split_once('"').expect("its end");
    world.nft(&["delete", "table", "inet", "icebox"]);
    // An older one did not guard it; `nft` 1.0.6 prints a flag that it does not know as an empty word.
    let (start, _) = start.split_once("flags").unwrap_or((start, ""));
    world.nft(&[&format!("{start} comment \"of an older iceboxd\" {rest}")]);
    world.start();
    assert!(passes(&mut world, &b, "after."), "the box was lost");
    assert!(world.wait(world.side().counters(b.pair)).sent.packets > before, "its counters were lost");
    assert!(!world.nft(&["list", "table", "inet", "icebox"]).contains("older"));
}
