//! Name servers of the world: a table that a test may change, and a list of all questions.
//!
//! Plain bytes (RFC 1035), since what a resolver must cope with is not always what a library would send.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{DEADLINE, udp};
use crate::netns::Netns;

/// Type numbers.
pub const A: u16 = 1;
const CNAME: u16 = 5;
/// Text.
pub const TXT: u16 = 16;
/// IPv6 addresses.
pub const AAAA: u16 = 28;
const PORT: u16 = 53;
const NXDOMAIN: u8 = 3;
const HEADER_BYTES: usize = 12;
/// A pointer to the question's name.
const QUESTION_NAME: [u8; 2] = [0xc0, HEADER_BYTES as u8];

/// What is answered for a name.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// Names that it stands for, one after the other; the addresses are the last one's.
    pub chain: Vec<String>,
    /// IPv4 addresses.
    pub a: Vec<Ipv4Addr>,
    /// IPv6 addresses.
    pub aaaa: Vec<Ipv6Addr>,
    /// Text.
    pub txt: Vec<String>,
    /// By UDP, only that the answer is too long.
    pub truncated: bool,
}

impl Answer {
    /// Addresses, for an hour.
    #[must_use]
    pub fn of(a: &[Ipv4Addr]) -> Self {
        Self { ttl: 3600, a: a.to_vec(), ..Self::default() }
    }
}

/// A question that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The address of the server.
    pub server: IpAddr,
    /// The name, in lower case, without a dot at the end.
    pub name: String,
    /// The type.
    pub kind: u16,
    /// By TCP.
    pub tcp: bool,
}

#[derive(Debug, Default)]
struct Shared {
    /// Answers in turn; the last one stays.
    table: HashMap<String, Vec<Answer>>,
    questions: Vec<Question>,
}

/// The servers.
#[derive(Debug, Clone, Default)]
pub struct Dns {
    shared: Arc<Mutex<Shared>>,
}

impl Dns {
    /// Servers at some addresses, by UDP and TCP.
    #[must_use]
    pub fn start(namespace: &Netns, addresses: impl Iterator<Item = Ipv4Addr>) -> Self {
        let dns = Self::default();
        for address in addresses {
            let socket = udp(namespace, address.into(), PORT);
            socket.set_read_timeout(None).expect("no timeout");
            let server = dns.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    if let Some(answer) = server.answer(&buffer[..length], address.into(), false) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            });
            let listener = namespace.run(|| TcpListener::bind((address, PORT)).expect("listen"));
            let server = dns.clone();
            thread::spawn(move || server.serve_tcp(&listener, address.into()));
        }
        dns
    }

    /// From now on, `name` has this answer. A name that begins with `*.` stands for all below it.
    pub fn set(&self, name: &str, answer: Answer) {
        self.set_turns(name, vec![answer]);
    }

    /// From now on, `name` has these answers in turn; the last one stays.
    pub fn set_turns(&self, name: &str, answers: Vec<Answer>) {
        self.lock().table.insert(name.to_ascii_lowercase(), answers);
    }

    /// All questions until now.
    #[must_use]
    pub fn questions(&self) -> Vec<Question> {
        self.lock().questions.clone()
    }

    /// How many questions were asked for a name or one below it.
    #[must_use]
    pub fn asked(&self, name: &str) -> usize {
        let below = format!(".{name}");
        self.lock().questions.iter().filter(|q| q.name == name || q.name.ends_with(&below)).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_tcp(&self, listener: &TcpListener, address: IpAddr) {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let server = self.clone();
            thread::spawn(move || -> std::io::Result<()> {
                stream.set_read_timeout(Some(DEADLINE))?;
                loop {
                    let mut length = [0; 2];
                    stream.read_exact(&mut length)?;
                    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut question)?;
                    let Some(answer) = server.answer(&question, address, true) else { return Ok(()) };
                    let length = u16::try_from(answer.len()).expect("a short answer");
                    stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
                }
            });
        }
    }

    fn answer(&self, question: &[u8], server: IpAddr, tcp: bool) -> Option<Vec<u8>> {
        let (name, end) = read_name(question)?;
        let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
        let found = self.look_up(Question { server, name, kind, tcp });
        let mut answer = question.get(..2)?.to_vec();
        let truncated = found.as_ref().is_some_and(|f| f.truncated && !tcp);
        // A response, to a query that wanted recursion, which is there.
        answer.extend([0x81 | if truncated { 2 } else { 0 }, 0x80 | if found.is_some() { 0 } else { NXDOMAIN }]);
        let records = found.filter(|_| !truncated).map(|f| records(&f, kind)).unwrap_or_default();
        let count = u16::try_from(records.len()).expect("few records");
        answer.extend([0, 1]);
        answer.extend(count.to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(question.get(HEADER_BYTES..end + 4)?);
        answer.extend(records.concat());
        Some(answer)
    }

    fn look_up(&self, question: Question) -> Option<Answer> {
        let mut shared = self.lock();
        let name = question.name.clone();
        let is_for_addresses = question.kind == A;
        shared.questions.push(question);
        let mut keys = vec![name.clone()];
        let mut rest = name.as_str();
        while let Some((_, above)) = rest.split_once('.') {
            keys.push(format!("*.{above}"));
            rest = above;
        }
        let key = keys.into_iter().find(|key| shared.table.contains_key(key))?;
        let turns = shared.table.get_mut(&key)?;
        // Only questions for addresses take a turn: the number of questions of other types varies.
        if turns.len() > 1 && is_for_addresses { Some(turns.remove(0)) } else { turns.first().cloned() }
    }
}

/// The name of a question, in lower case, and where it ends.
fn read_name(message: &[u8]) -> Option<(String, usize)> {
    let mut at = HEADER_BYTES;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join(".").to_ascii_lowercase(), at));
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).into_owned());
        at += length;
    }
}

fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = owner.to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).expect("short data").to_be_bytes());
    bytes.extend(data);
    bytes
}

fn records(answer: &Answer, kind: u16) -> Vec<Vec<u8>> {
    let mut owner = QUESTION_NAME.to_vec();
    let mut all = Vec::new();
    for name in &answer.chain {
        let next = encode_name(name);
        all.push(record(&owner, CNAME, answer.ttl, &next));
        owner = next;
    }
    let mut add = |data: &[u8]| all.push(record(&owner, kind, answer.ttl, data));
    match kind {
        A => answer.a.iter().for_each(|a| add(&a.octets())),
        AAAA => answer.aaaa.iter().for_each(|a| add(&a.octets())),
        TXT => answer.txt.iter().for_each(|t| add(&[&[t.len() as u8], t.as_bytes()].concat())),
        _ => {}
    }
    all
}
