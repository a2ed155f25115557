//! The whole ruleset as `nft` reads it, compared with a committed file. What `nft` prints was not written by the code
//! under test: a wrong number in a message shows as another statement, or as one that `nft` cannot read.
//!
//! After an intended change, write the file anew and look at the difference:
//!
//! ```console
//! # UPDATE_GOLDEN=1 cargo nextest run -p icebox-net --test priv_net priv_nft_the_whole_ruleset; git diff
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use icebox_net::firewall::{Limits, Pin, Policy};
use icebox_net::{Attachment, HostConfig};

use crate::world::{SITE, SITE_2, TestBox, World};

const GOLDEN: &str = include_str!("../golden/ruleset.nft");
const GOLDEN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ruleset.nft");

/// Sets whose marks begin with the time of the start.
const OF_THIS_START: [&str; 2] = ["generation", "current"];

/// `text` without what differs from run to run: counts, remaining times, marks of this start, the order of elements,
/// and what depends on the kernel's version. Each element has a line of its own. Protocols are asked for as numbers: a
/// machine without `/etc/protocols` has no names for them.
fn normalized(text: &str) -> String {
    let (mut out, mut set, mut elements) = (String::new(), "", None::<String>);
    // Which parts have an empty line between them depends on what else is printed.
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let word = line.trim();
        if let Some(name) = ["set ", "map "].iter().find_map(|kind| word.strip_prefix(kind)?.strip_suffix(" {")) {
            set = name;
        }
        let begun = word.strip_prefix("elements = {").map(str::to_owned);
        if let Some(all) = begun.or_else(|| elements.take().map(|all| format!("{all} {word}"))) {
            match all.strip_suffix('}') {
                Some(all) => out.push_str(&listed(set, all)),
                None => elements = Some(all),
            }
            continue;
        }
        let is_of_kernel =
            word.starts_with("flags owner") || word.starts_with("comment ") || word.starts_with("table ");
        match is_of_kernel {
            false => out.push_str(&plain("", line.trim_end())),
            true if word.starts_with("table ") => out.push_str("table inet icebox {"),
            true => continue,
        }
        out.push('\n');
    }
    assert!(elements.is_none(), "elements without an end: {text}");
    out
}

fn listed(set: &str, all: &str) -> String {
    let mut list: Vec<String> = all.split(',').map(|element| plain(set, element.trim())).collect();
    list.sort();
    format!("\t\telements = {{\n\t\t\t{}\n\t\t}}\n", list.join("\n\t\t\t"))
}

/// One element, with `N` for what counts.
fn plain(set: &str, element: &str) -> String {
    let mut words: Vec<&str> = element.split(' ').collect();
    for at in 1..words.len() {
        let counts = matches!(words[at - 1], "packets" | "bytes" | "timeout" | "expires") && !words.contains(&"limit");
        let is_mark = OF_THIS_START.contains(&set) && words[at].starts_with("0x");
        if counts || is_mark {
            words[at] = "N";
        }
    }
    words.join(" ")
}

/// One box of each kind.
fn boxes(world: &mut World) -> Vec<TestBox> {
    let net = |text: &str| text.parse().expect("network");
    let limits = Limits {
        new_per_second_max: Some(512),
        send_bytes_per_second: Some(1 << 20),
        receive_bytes_per_second: Some(1 << 21),
    };
    let custom = Policy::Custom {
        allowed: vec![net("203.0.113.0/24"), net("198.51.100.7/32")],
        denied: vec![net("203.0.113.8/31")],
    };
    let none = Limits::default();
    let kinds = [
        (Policy::AllowAll, none, false),
        (Policy::AllowAll, limits, true),
        (Policy::DenyAll, none, true),
        (custom.clone(), limits, false),
        (custom, none, true),
    ];
    let attach = |(policy, limits, intercept_tls): (Policy, Limits, bool)| {
        let b = world.new_box();
        let (id, namespace) = (b.id.clone(), b.namespace.clone());
        world.wait(world.side().attach(Attachment { id, pair: b.pair, namespace, policy, limits, intercept_tls }));
        b
    };
    kinds.into_iter().map(attach).collect()
}

#[test]
fn priv_nft_the_whole_ruleset_is_the_committed_one() {
    let mut world = World::new();
    world.start_with(HostConfig { connections_max: Some(4096), ..World::config() });
    let boxes = boxes(&mut world);
    let pins = [SITE, SITE_2].map(|address: Ipv4Addr| Pin { address, time: Duration::from_secs(600) });
    world.wait(world.side().pin(boxes[3].pair, pins.to_vec()));
    world.wait(world.side().set_frozen(boxes[0].pair, true));
    let found = normalized(&world.nft(&["--numeric-protocol", "list", "ruleset"]));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN_PATH, &found).expect("write the file");
        return;
    }
    let differs = |(wanted, is): &(&str, &str)| wanted != is;
    let first = GOLDEN.lines().zip(found.lines()).find(differs);
    assert!(
        first.is_none() && GOLDEN.len() == found.len(),
        "the ruleset differs from tests/golden/ruleset.nft, first in {first:?}. If that is intended, run this test with \
         UPDATE_GOLDEN=1 in the environment, and commit the file.\n{found}"
    );
}

#[test]
fn what_differs_from_run_to_run_is_left_out() {
    let one = "table inet icebox { # progname x\n\tcomment \"a\"\n\tflags owner\n\n\tmap generation {\n\t\telements = { 10.0.0.2 : 0x00000007,\n\t\t\t     10.0.0.1 : 0x00000008 }\n\t}\n\tset sent {\n\t\telements = { 10.0.0.1 counter packets 3 bytes 5 }\n\t}\n}\n";
    let two = "table inet icebox {\n\n\tmap generation {\n\t\telements = { 10.0.0.1 : 0x00000009, 10.0.0.2 : 0x0000000a }\n\t}\n\tset sent {\n\t\telements = { 10.0.0.1 counter packets 4 bytes 6 }\n\t}\n}\n";
    assert_eq!(normalized(one), normalized(two));
    let other = two.replace("10.0.0.2", "10.0.0.3");
    assert_ne!(normalized(one), normalized(&other));
    assert_ne!(
        normalized("\t\telements = { 1.1.1.1 limit rate over 5/second burst 5 packets }"),
        normalized("\t\telements = { 1.1.1.1 limit rate over 6/second burst 6 packets }")
    );
}
