//! A DNS server for tests, over UDP and TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

pub(super) fn name(text: &str) -> Name {
    Name::from_ascii(text).expect(text)
}

fn a(owner: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(address.into())))
}

fn alias(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 60, RData::CNAME(CNAME(name(target))))
}

/// The upstream's records. UDP answers for names below `many.` are truncated.
fn zone(question: &Query) -> (ResponseCode, Vec<Record>) {
    let text = question.name().to_ascii().to_ascii_lowercase();
    let v6 = RData::AAAA(AAAA("2001:db8::1".parse().expect("address")));
    let records = match (text.as_str(), question.query_type()) {
        ("a.example.", RecordType::A) => vec![a("a.example.", 9000, [198, 51, 100, 1])],
        ("short.example.", RecordType::A) => vec![a("short.example.", 1, [198, 51, 100, 1])],
        ("www.example.", RecordType::A) => {
            vec![alias("www.example.", "cdn.other."), a("cdn.other.", 20, [198, 51, 100, 2])]
        }
        ("mixed.example.", RecordType::A) => vec![
            a("mixed.example.", 60, [10, 0, 0, 1]),
            a("mixed.example.", 60, [198, 51, 100, 3]),
            a("mixed.example.", 60, [198, 51, 100, 66]),
        ],
        ("inside.example.", RecordType::A) => {
            vec![alias("inside.example.", "x.y."), a("x.y.", 60, [169, 254, 169, 254])]
        }
        ("denied.example.", RecordType::A) => vec![a("denied.example.", 60, [198, 51, 100, 66])],
        ("pool.example.", RecordType::A) => vec![a("pool.example.", 60, [203, 0, 113, 7])],
        ("a.example.", RecordType::AAAA) => vec![Record::from_rdata(name("a.example."), 60, v6)],
        ("a.example.", RecordType::MX) => {
            vec![Record::from_rdata(name("a.example."), 60, RData::MX(MX::new(1, name("mail.example."))))]
        }
        ("1.100.51.198.in-addr.arpa.", RecordType::PTR) | ("9.100.51.198.in-addr.arpa.", RecordType::PTR) => {
            vec![Record::from_rdata(question.name().clone(), 60, RData::PTR(PTR(name("a.example."))))]
        }
        ("many.example.", RecordType::TXT) => {
            let text = RData::TXT(TXT::new((0..40).map(|_| "x".repeat(100)).collect()));
            vec![Record::from_rdata(name("many.example."), 60, text)]
        }
        ("many.pool.example.", RecordType::A) => {
            (1..=240).map(|n| a("many.pool.example.", 60, [198, 51, 100, n])).collect()
        }
        ("fails.example.", _) => return (ResponseCode::ServFail, Vec::new()),
        _ => return (ResponseCode::NXDomain, Vec::new()),
    };
    (ResponseCode::NoError, records)
}

/// The server. It records its questions.
#[derive(Default)]
pub(super) struct Upstream {
    pub(super) asked: Mutex<Vec<String>>,
    /// Sends a forged datagram before the true one.
    pub(super) forges: AtomicBool,
    pub(super) held: tokio::sync::Mutex<()>,
}

impl Upstream {
    fn answer(&self, bytes: &[u8], by_udp: bool) -> Vec<u8> {
        let question = Message::from_vec(bytes).expect("the proxy writes questions");
        assert!(question.recursion_desired && question.queries.len() == 1);
        let query = question.queries[0].clone();
        self.asked.lock().unwrap().push(format!("{} {}", query.name(), query.query_type()));
        let mut response = Message::new(question.id, MessageType::Response, OpCode::Query);
        let is_cut = by_udp && query.name().to_ascii().starts_with("many.");
        (response.metadata.response_code, response.answers) = zone(&query);
        response.additionals = vec![a("a.example.", 60, [10, 9, 9, 9])];
        response.add_query(query);
        if is_cut {
            response = response.truncate();
        }
        response.to_vec().expect("bytes")
    }

    fn forged(bytes: &[u8]) -> Vec<u8> {
        let question = Message::from_vec(bytes).expect("a question");
        let mut response = Message::new(question.id.wrapping_add(1), MessageType::Response, OpCode::Query);
        response.add_query(question.queries[0].clone());
        response.answers = vec![a("a.example.", 60, [198, 51, 100, 99])];
        response.to_vec().expect("bytes")
    }

    pub(super) async fn start() -> (Arc<Self>, SocketAddr) {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = udp.local_addr().expect("address");
        let tcp = TcpListener::bind(address).await.expect("listen");
        let upstream = Arc::new(Self::default());
        let (one, two) = (Arc::clone(&upstream), Arc::clone(&upstream));
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
                let _free = one.held.lock().await;
                if one.forges.load(Ordering::Relaxed) {
                    for bytes in [Self::forged(&buffer[..length]), b"x".to_vec(), buffer[..length].to_vec()] {
                        udp.send_to(&bytes, peer).await.expect("send");
                    }
                }
                udp.send_to(&one.answer(&buffer[..length], true), peer).await.expect("send");
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.expect("length");
                let mut bytes = vec![0; length.into()];
                stream.read_exact(&mut bytes).await.expect("question");
                let answer = two.answer(&bytes, false);
                stream.write_u16(answer.len() as u16).await.expect("length");
                stream.write_all(&answer).await.expect("answer");
            }
        });
        (upstream, address)
    }
}
