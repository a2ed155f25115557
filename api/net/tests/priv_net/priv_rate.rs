//! Bandwidth.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use icebox_net::firewall::{Counters, Limits, Policy};

use crate::world::{SITE, TestBox, World};

/// So low that a box without it passes many times as much even where the processor is software.
const PER_SECOND: u64 = 1 << 18;
const LASTS: Duration = Duration::from_secs(3);
/// One second's worth at once, and the burst.
const AT_ONCE: u64 = PER_SECOND + (128 << 10);

/// Sends to an echo server, as fast as possible.
fn exchange(b: &TestBox) -> thread::JoinHandle<()> {
    let stream = b.connect(SITE, 80).expect("connect");
    let mut reader = stream.try_clone().expect("clone");
    thread::spawn(move || {
        let begun = Instant::now();
        let writer = thread::spawn(move || {
            let mut stream = stream;
            while begun.elapsed() < LASTS && stream.write_all(&[7; 1 << 14]).is_ok() {}
            let _ = stream.shutdown(std::net::Shutdown::Both);
        });
        let mut buffer = vec![0; 1 << 16];
        while begun.elapsed() < LASTS && reader.read(&mut buffer).is_ok_and(|n| n > 0) {}
        // A thread that waits in a write does not look at the clock.
        let _ = reader.shutdown(std::net::Shutdown::Both);
        writer.join().expect("writer");
    })
}

/// What two boxes sent and received at the same time.
fn side_by_side(limits: Limits) -> (Counters, Counters) {
    let mut world = World::new();
    let (limited, free) = (world.new_box(), world.add_box(Policy::AllowAll));
    world.attach(&limited, Policy::AllowAll, limits);
    [exchange(&limited), exchange(&free)].into_iter().for_each(|thread| thread.join().expect("exchange"));
    (world.wait(world.side().counters(limited.pair)), world.wait(world.side().counters(free.pair)))
}

fn check(limited: u64, free: u64) {
    let most = AT_ONCE + PER_SECOND * (LASTS.as_secs() + 1);
    println!("limited to {PER_SECOND} bytes per second: {limited} bytes; beside it without: {free} bytes");
    assert!(limited <= most, "{limited} bytes passed, {most} may");
    assert!(limited >= PER_SECOND, "a limit of {PER_SECOND} bytes per second let only {limited} pass");
    assert!(free > 4 * most, "a box without a limit was slowed: {free} bytes");
}

#[test]
fn priv_what_a_box_sends_is_limited_and_another_is_not_slowed() {
    let (limited, free) = side_by_side(Limits { send_bytes_per_second: Some(PER_SECOND), ..Limits::default() });
    check(limited.sent.bytes, free.sent.bytes);
}

#[test]
fn priv_what_a_box_receives_is_limited_and_another_is_not_slowed() {
    let (limited, free) = side_by_side(Limits { receive_bytes_per_second: Some(PER_SECOND), ..Limits::default() });
    check(limited.received.bytes, free.received.bytes);
}
