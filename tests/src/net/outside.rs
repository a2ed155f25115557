//! A way out of the world, for tests whose programs fetch packages: a proxy in the internet of the world (CONNECT only) that
//! connects by the machine's own network. What the box does to get there is what it does anywhere: its link, its policy, the
//! firewall of the host.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;

use super::World;

/// An address in the internet that no other server of the world has a part in.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
const PORT: u16 = 3128;
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The certificates that this machine trusts: a proxy of the house may answer for a server with its own.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

impl World {
    /// Opens the way, for as long as the test lives. The URL of the proxy.
    #[must_use]
    pub fn open_outside(&self) -> String {
        let listener: TcpListener = self.listen(PORT);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The failure of one connection is told to its client, by its end.
                thread::spawn(move || serve(stream));
            }
        });
        format!("http://{ADDRESS}:{PORT}")
    }
}

/// The certificates that this machine trusts, as PEM.
#[must_use]
pub fn certificates() -> String {
    let named = std::env::var("SSL_CERT_FILE").ok().filter(|path| !path.is_empty());
    let path = named.unwrap_or_else(|| CERTIFICATES.to_owned());
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {path}: {e}"))
}

fn serve(stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut bytes) = (String::new(), 0);
    loop {
        let mut line = String::new();
        bytes += reader.read_line(&mut line)?;
        if line.trim_end().is_empty() || bytes > HEAD_BYTES_MAX {
            break;
        }
        if first.is_empty() {
            first = line;
        }
    }
    let mut client = stream;
    let mut words = first.split(' ');
    let (Some("CONNECT"), Some(target)) = (words.next(), words.next()) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
    };
    // This thread is in the machine's own namespace.
    let server = match TcpStream::connect(target) {
        Ok(server) => server,
        Err(_) => return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
    };
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (mut to_server, mut from_server) = (server.try_clone()?, server);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut reader, &mut to_server);
        to_server.shutdown(Shutdown::Write)
    });
    let _ = io::copy(&mut from_server, &mut client);
    let _ = client.shutdown(Shutdown::Write);
    let _ = up.join();
    Ok(())
}
