//! Tests of added headers.

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::hello::tests::{extension, message, names, records};
use super::*;

type Body = http_body_util::combinators::BoxBody<Bytes, io::Error>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn headers() -> Option<serde_json::Value> {
    Some(json!({"*.example": {"Authorization": "hidden"}, "deep.api.example": {"X-Deep": "hidden"}}))
}

/// A world whose server echoes what it received.
async fn world(policy: BoxPolicy, server_name: &str) -> World {
    let world = World::new(policy, headers()).await;
    let tls = world.outside.server(server_name);
    world
        .serve_http(443, Some(tls), |request: Request<hyper::body::Incoming>| async move {
            let mut shown = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                shown.push_str(&format!("{name}={}\n", value.to_str().expect("text")));
            }
            let body = request.into_body().collect().await.expect("body").to_bytes();
            Response::new(full([shown.as_bytes(), &body].concat()))
        })
        .await;
    world
}

#[tokio::test]
async fn headers_are_added_for_matching_hosts() {
    for policy in [BoxPolicy::AllowAll, custom(&["api.example"])] {
        let world = world(policy, "api.example").await;
        world.box_.names.answered("api.example", &[SITE], Duration::from_secs(60));
        let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let text = ask(
            &mut tls,
            b"POST /x?y HTTP/1.1\r\nHost: api.example\r\nAuthorization: mine\r\nauthorization: mine too\r\nContent-Length: 2\r\n\r\nhi\
              GET /2 HTTP/1.1\r\nHost: API.example:443\r\nConnection: close, x-gone\r\nX-Gone: 1\r\nX-Kept: 1\r\n\r\n",
        )
        .await;
        assert_eq!(text.matches("authorization=hidden").count(), 2, "{text}");
        assert!(
            !text.contains("mine")
                && text.contains("POST /x?y\n")
                && text.contains("\nhi")
                && text.contains("GET /2\n")
        );
        assert!(!text.contains("x-gone") && text.contains("x-kept=1") && !text.contains("x-deep"), "{text}");
        assert_eq!((world.connected().len(), world.egress.counters().requests), (1, 2));
        assert!(world.rules().is_empty());
    }
}

/// The ClientHello of a real client with one more extension.
fn hello_with(added: &[u8], name: &str) -> Vec<u8> {
    let roots = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = roots.expect("versions").with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("hello");
    // The enclosing lengths: of the record, of the message, and of the extension list, which follows three other lists.
    let byte = |hello: &[u8], at: usize| usize::from(hello[at]);
    let session = 5 + 4 + 2 + 32;
    let suites = session + 1 + byte(&hello, session);
    let compressions = suites + 2 + (byte(&hello, suites) << 8 | byte(&hello, suites + 1));
    let list = compressions + 1 + byte(&hello, compressions);
    for at in [3, 7, list] {
        let length = (byte(&hello, at) << 8 | byte(&hello, at + 1)) + added.len();
        hello[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
    }
    hello.extend_from_slice(added);
    hello
}

/// Where TLS ends here, the outer name counts; an encrypted ClientHello inside, as browsers send it, is ignored.
#[tokio::test]
async fn an_encrypted_hello_does_not_matter_where_headers_are_added() {
    const SERVER_HELLO: u8 = 2;
    // As in draft-ietf-tls-esni, 5: outer type; HKDF-SHA256 and AES-128-GCM; key id; the client's key; the payload.
    let grease = [&[0, 0, 1, 0, 1, 7, 0, 32][..], &[5; 32], &[0, 16], &[6; 16]].concat();
    let world = world(custom(&["api.example", "good.test"]), "api.example").await;
    for name in ["api.example", "good.test"] {
        world.box_.names.answered(name, &[SITE], Duration::from_secs(60));
        let mut stream = world.dial(SITE, 443).await;
        stream.write_all(&hello_with(&extension(0xfe0d, &grease), name)).await.expect("write");
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.expect("an answer");
        let is_answered = answer[0] == 22 && answer[5] == SERVER_HELLO;
        assert_eq!(is_answered, name == "api.example", "{name}: {answer:?}");
    }
    assert_eq!(world.rules().len(), 1, "{:?}", world.rules());
}

#[tokio::test]
async fn other_hosts_pass_untouched() {
    let world = World::new(BoxPolicy::AllowAll, headers()).await;
    world.serve_echo(SITE, 443).await;
    for said in [
        records(&message(&[names(&[(0, "example.org")])]), 9),
        records(&message(&[]), 16_000),
        b"SSH-2.0-anything\r\n".to_vec(),
    ] {
        let mut stream = world.dial(SITE, 443).await;
        stream.write_all(&said).await.expect("write");
        let mut back = vec![0; said.len()];
        stream.read_exact(&mut back).await.expect("echo");
        assert_eq!(back, said);
    }
    // A server that speaks first.
    let listener = world.serve(OTHER, 443).await;
    let mut stream = world.dial(OTHER, 443).await;
    let (mut server, _) = listener.accept().await.expect("accept");
    server.write_all(b"banner").await.expect("write");
    let mut banner = [0; 6];
    stream.read_exact(&mut banner).await.expect("banner");
    assert_eq!(&banner, b"banner");
}

#[tokio::test]
async fn nothing_is_sent_to_a_server_that_is_not_the_one() {
    let world = world(BoxPolicy::AllowAll, "other.example").await;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS with the proxy");
    let text = ask(&mut tls, b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await;
    assert!(
        text.starts_with("HTTP/1.1 502") && text.contains("nothing was sent") && !text.contains("hidden"),
        "{text}"
    );
    assert_eq!(world.rules(), ["TLS of the server"]);
    // Nor to a server with a certificate of another authority.
    let world = World::new(BoxPolicy::AllowAll, headers()).await;
    let stranger = WorldAuthority::new().server("api.example");
    world.serve_http(443, Some(stranger), |_| async { Response::new(full("reached")) }).await;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS with the proxy");
    let text = ask(&mut tls, b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 502") && !text.contains("reached"), "{text}");
}

#[tokio::test]
async fn a_request_for_another_host_is_misdirected() {
    let world = world(BoxPolicy::AllowAll, "api.example").await;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
    let text = ask(
        &mut tls,
        b"GET /1 HTTP/1.1\r\nHost: api.example\r\n\r\nGET /2 HTTP/1.1\r\nHost: deep.api.example\r\n\r\nGET /3 HTTP/1.1\r\nHost: api.example\r\n\r\n",
    )
    .await;
    assert!(
        text.contains("/1\n") && text.contains("421 Misdirected") && !text.contains("/2\n") && !text.contains("/3\n"),
        "{text}"
    );
    assert_eq!(world.rules(), ["Host differs from the server name of TLS"]);
}

#[tokio::test]
async fn under_custom_a_name_must_be_allowed_even_if_headers_match() {
    let world = world(custom(&["allowed.example"]), "api.example").await;
    world.box_.names.answered("api.example", &[SITE], Duration::from_secs(60));
    world.dial_tls(443, "api.example").await.expect_err("refused inside of TLS");
    world.dial_tls(443, "allowed.example").await.expect_err("it stands for another address");
    assert!(world.connected().is_empty());
    assert_eq!(world.rules(), ["not in allowed_domains", "the address is not one of this name"]);
    // An HTTP/2-only client is refused by ALPN.
    world.box_.set_policy(BoxPolicy::AllowAll);
    let mut config = (**trusting(&world.authority.certificate_pem()).config()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = world.dial(SITE, 443).await;
    let name = ServerName::try_from("api.example").expect("name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect_err("HTTP/2 only");
}

#[tokio::test]
async fn a_websocket_opens_and_is_cut_by_the_policy() {
    let world = World::new(BoxPolicy::AllowAll, headers()).await;
    let tls = world.outside.server("api.example");
    world
        .serve_http(443, Some(tls), |mut request: Request<hyper::body::Incoming>| async move {
            assert_eq!(request.headers()["authorization"], "hidden");
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.expect("upgrade"));
                let mut word = [0; 4];
                while stream.read_exact(&mut word).await.is_ok() {
                    stream.write_all(&word).await.expect("write");
                }
            });
            let mut answer = Response::new(full(""));
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            answer.headers_mut().insert("connection", "upgrade".parse().expect("value"));
            answer.headers_mut().insert("upgrade", "websocket".parse().expect("value"));
            answer.headers_mut().insert("sec-websocket-accept", "x".parse().expect("value"));
            answer
        })
        .await;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
    let request =
        b"GET / HTTP/1.1\r\nHost: api.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\nping";
    tls.write_all(request).await.expect("write");
    let mut head = Vec::new();
    while !head.ends_with(b"ping") {
        head.push(tls.read_u8().await.expect("answer"));
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101")
            && head.contains("upgrade: websocket")
            && head.contains("sec-websocket-accept")
    );
    for _ in 0..100 {
        tls.write_all(b"more").await.expect("write");
        let mut word = [0; 4];
        tls.read_exact(&mut word).await.expect("echo");
    }
    world.box_.set_policy(custom(&["other.example"]));
    assert_eq!(rest(&mut tls).await.1, Some(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn bodies_stream_both_ways_with_trailers() {
    const CHUNKS: usize = 256;
    let world = World::new(BoxPolicy::AllowAll, headers()).await;
    let tls = world.outside.server("api.example");
    // Each chunk is echoed at once, with the byte count at the end.
    world
        .serve_http(443, Some(tls), |request: Request<hyper::body::Incoming>| async move {
            let bytes = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&bytes);
            let echo = request.into_body().into_data_stream().map(move |data| {
                let data = data.map_err(io::Error::other)?;
                counted.fetch_add(data.len(), Ordering::Relaxed);
                Ok(Frame::data(data))
            });
            let trailers = futures::stream::once(async move {
                let mut map = hyper::HeaderMap::new();
                map.insert("x-bytes", bytes.load(Ordering::Relaxed).into());
                Ok(Frame::trailers(map))
            });
            let mut answer = Response::new(Body::new(StreamBody::new(echo.chain(trailers))));
            answer.headers_mut().insert("trailer", "x-bytes".parse().expect("value"));
            answer
        })
        .await;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
    let head = b"POST / HTTP/1.1\r\nHost: api.example\r\nTE: trailers\r\nConnection: TE, close\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    tls.write_all(head).await.expect("write");
    let mut go = Vec::new();
    while !go.ends_with(b"\r\n\r\n") {
        go.push(tls.read_u8().await.expect("100 Continue"));
    }
    assert!(go.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&go));
    let (mut reader, mut writer) = tokio::io::split(tls);
    let reader = tokio::spawn(async move { rest(&mut reader).await });
    let chunk = [&b"8000\r\n"[..], &[b'x'; 0x8000], b"\r\n"].concat();
    for _ in 0..CHUNKS {
        writer.write_all(&chunk).await.expect("write");
    }
    writer.write_all(b"0\r\n\r\n").await.expect("write");
    // What a full socket did not take is in the TLS session; only a flush waits for it.
    writer.flush().await.expect("flush");
    let (all, _) = reader.await.expect("reader");
    assert_eq!(all.iter().filter(|b| **b == b'x').count(), CHUNKS * 0x8000 + 2, "and twice in x-bytes");
    let text = String::from_utf8_lossy(&all[all.len() - 100..]).to_ascii_lowercase();
    assert!(text.contains(&format!("x-bytes: {}", CHUNKS * 0x8000)), "{text}");
}

#[tokio::test]
async fn events_arrive_when_they_are_sent() {
    let world = World::new(BoxPolicy::AllowAll, headers()).await;
    let tls = world.outside.server("api.example");
    let (send, receive) = tokio::sync::mpsc::channel::<&'static str>(1);
    let receive = Arc::new(tokio::sync::Mutex::new(Some(receive)));
    world
        .serve_http(443, Some(tls), move |_| {
            let receive = Arc::clone(&receive);
            async move {
                let events = receive.lock().await.take().expect("one request");
                let events = tokio_stream::wrappers::ReceiverStream::new(events);
                let body = Body::new(StreamBody::new(events.map(|event| Ok(Frame::data(Bytes::from(event))))));
                let mut answer = Response::new(body);
                answer.headers_mut().insert("content-type", "text/event-stream".parse().expect("value"));
                answer
            }
        })
        .await;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
    tls.write_all(b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await.expect("write");
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        send.send(event).await.expect("send");
        let mut seen = Vec::new();
        // The next is sent only after this one arrived.
        while !String::from_utf8_lossy(&seen).contains(event) {
            seen.push(tls.read_u8().await.expect("event"));
        }
    }
    drop(send);
    assert_eq!(rest_of_chunks(&mut tls).await, "0\r\n\r\n");
}

/// The end of a chunked body.
async fn rest_of_chunks(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut seen = String::new();
    while !seen.ends_with("0\r\n\r\n") {
        seen.push(char::from(stream.read_u8().await.expect("end")));
    }
    seen.trim_start_matches("\r\n").to_owned()
}

#[tokio::test]
async fn a_server_that_closes_is_heard_of() {
    let world = World::new(BoxPolicy::AllowAll, headers()).await;
    let tls = world.outside.server("api.example");
    world
        .serve_http(443, Some(tls), |_| async {
            let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
            answer.headers_mut().insert("connection", "close".parse().expect("value"));
            answer
        })
        .await;
    for _ in 0..3 {
        let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
        let text = ask(&mut tls, b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
    assert_eq!(world.connected().len(), 3, "the box hears that the server closes");
}
