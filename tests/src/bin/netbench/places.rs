//! Where clients are: in boxes, in a plain namespace without any rules, and behind a bridge with the rules of Docker.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use icebox_tests::net::{World, connect};
use icebox_tests::netns::Netns;
use icebox_tests::{Daemon, TestBox};

/// The server's address.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The port of the echo server.
pub(crate) const ECHO_PORT: u16 = 7000;
/// Where bytes come from: the client says how many.
pub(crate) const SOURCE_PORT: u16 = 7001;

/// The rules that Docker 20 to 27 puts in place for its default bridge, as `iptables-nft` writes them: masquerading, the
/// chains that every forwarded packet passes, and tracking of connections.
const DOCKER_RULES: &str = r#"
table ip nat {
  chain DOCKER { iifname "docker0" counter return; }
  chain PREROUTING { type nat hook prerouting priority dstnat; fib daddr type local counter jump DOCKER; }
  chain OUTPUT { type nat hook output priority -100; ip daddr != 127.0.0.0/8 fib daddr type local counter jump DOCKER; }
  chain POSTROUTING { type nat hook postrouting priority srcnat; oifname != "docker0" ip saddr 10.99.0.0/24 counter masquerade; }
}
table ip filter {
  chain DOCKER { }
  chain DOCKER-ISOLATION-STAGE-2 { oifname "docker0" counter drop; counter return; }
  chain DOCKER-ISOLATION-STAGE-1 { iifname "docker0" oifname != "docker0" counter jump DOCKER-ISOLATION-STAGE-2; counter return; }
  chain DOCKER-USER { counter return; }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    counter jump DOCKER-USER
    counter jump DOCKER-ISOLATION-STAGE-1
    oifname "docker0" ct state related,established counter accept
    oifname "docker0" counter jump DOCKER
    iifname "docker0" oifname != "docker0" counter accept
    iifname "docker0" oifname "docker0" counter accept
  }
}
"#;

/// Servers in the internet.
pub(crate) fn serve(world: &World) {
    let echo = world.listen(ECHO_PORT);
    thread::spawn(move || {
        for stream in echo.incoming().flatten() {
            thread::spawn(move || bounce(stream));
        }
    });
    let source = world.listen(SOURCE_PORT);
    thread::spawn(move || {
        for stream in source.incoming().flatten() {
            thread::spawn(move || pour(stream));
        }
    });
}

fn bounce(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

fn pour(mut stream: TcpStream) -> std::io::Result<()> {
    let mut wanted = [0; 8];
    stream.read_exact(&mut wanted)?;
    let mut left = usize::try_from(u64::from_be_bytes(wanted)).map_err(std::io::Error::other)?;
    let block = vec![b'x'; 256 << 10];
    while left > 0 {
        let now = left.min(block.len());
        stream.write_all(&block[..now])?;
        left -= now;
    }
    Ok(())
}

/// A world with a namespace behind Docker's bridge in the place of a box.
pub(crate) fn docker_like() -> (World, Netns) {
    let world = World::new();
    let inside = world.bridged("docker0");
    let load = || {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
        nft.stdin.take().expect("a pipe").write_all(DOCKER_RULES.as_bytes()).expect("write");
        assert!(nft.wait().expect("nft").success(), "Docker's rules");
    };
    world.host.run(load);
    (world, inside)
}

/// The network namespace of a box.
pub(crate) fn namespace(daemon: &Daemon, made: &TestBox) -> Netns {
    Netns::of_process(daemon.init_pid(made)).expect("the box runs")
}

/// Connects, sends a byte, and waits for it; in microseconds.
pub(crate) fn fresh(place: &Netns) -> f64 {
    place.run(|| {
        let begun = Instant::now();
        let mut stream = TcpStream::connect((SERVER, ECHO_PORT)).expect("connect");
        once(&mut stream);
        begun.elapsed().as_secs_f64() * 1e6
    })
}

/// A connection for [`once`].
pub(crate) fn open(place: &Netns) -> TcpStream {
    let stream = connect(place, SERVER, ECHO_PORT).expect("connect");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Sends a byte and waits for it; in microseconds.
pub(crate) fn once(stream: &mut TcpStream) -> f64 {
    let begun = Instant::now();
    stream.write_all(b"x").expect("send");
    stream.read_exact(&mut [0]).expect("the byte");
    begun.elapsed().as_secs_f64() * 1e6
}

/// Receives `bytes`; the rate in MB per second.
pub(crate) fn receive(place: &Netns, bytes: u64) -> f64 {
    let mut stream = connect(place, SERVER, SOURCE_PORT).expect("connect");
    let begun = Instant::now();
    stream.write_all(&bytes.to_be_bytes()).expect("send");
    let mut buffer = vec![0; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let length = stream.read(&mut buffer).expect("receive");
        assert!(length > 0, "the stream ended early");
        left -= length as u64;
    }
    bytes as f64 / begun.elapsed().as_secs_f64() / 1e6
}
