//! What `attach_headers` costs: TLS is ended by the egress proxy and begun anew.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use icebox_tests::net::World;
use icebox_tests::net::dns::Answer;
use icebox_tests::netns::Netns;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};
use serde_json::json;

use crate::places::namespace;
use crate::{Case, report};

const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
const BLOCK: usize = 20;
const FRESH_BLOCK: usize = 4;

/// Trusts any certificate: this is a benchmark.
#[derive(Debug)]
struct TrustAll(CryptoProvider);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(place: &Netns, config: &Arc<ClientConfig>, name: &str) -> Tls {
    let stream = place.run(|| TcpStream::connect((SITE, 443)).expect("connect"));
    stream.set_nodelay(true).expect("no delay");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).expect("TLS"), stream)
}

fn request(stream: &mut Tls, name: &str) -> f64 {
    let begun = Instant::now();
    stream.write_all(format!("GET /x HTTP/1.1\r\nhost: {name}\r\n\r\n").as_bytes()).expect("send");
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    // The answer is one line of text after the head.
    while !seen.ends_with(b"\n") || !seen.windows(5).any(|w| w == b"hello") {
        let length = stream.read(&mut buffer).expect("an answer");
        assert!(length > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&buffer[..length]);
    }
    begun.elapsed().as_secs_f64() * 1e6
}

pub(crate) fn measure(rounds: usize) {
    let world = World::new();
    for name in ["with.test", "without.test"] {
        world.dns.set(name, Answer::of(&[SITE]));
    }
    let daemon = world.daemon_with("", "[network.limits]\nconnections_max = 0\nnew_connections_per_second_max = 0");
    let api = daemon.api();
    let open = api.create(&json!({ "keep_alive": true }));
    let policy = json!({ "mode": "custom", "allowed_domains": ["without.test"] });
    let named = api.create(&json!({ "keep_alive": true, "network_policy": policy }));
    named.out("getent ahosts without.test");
    let headers = json!({ "with.test": { "Authorization": "Bearer benchmark" } });
    let attached = api.create(&json!({ "keep_alive": true, "attach_headers": headers }));
    attached.out("getent ahosts with.test");
    let places = [
        ("direct", "allow-all, no proxy", namespace(&daemon, &open), "without.test"),
        (
            "name checked",
            "custom with allowed_domains: SNI is read, then bytes are passed",
            namespace(&daemon, &named),
            "without.test",
        ),
        ("attach_headers", "TLS is ended and begun anew", namespace(&daemon, &attached), "with.test"),
    ];
    let provider = ring::default_provider();
    let builder = ClientConfig::builder_with_provider(Arc::new(provider.clone())).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").dangerous().with_custom_certificate_verifier(Arc::new(TrustAll(provider)));
    let mut config = builder.with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    let config = Arc::new(config);
    let cases = || -> Vec<Case> { places.iter().map(|(name, note, ..)| Case::new(*name, note)).collect() };
    let (mut kept, mut new) = (cases(), cases());
    let mut streams: Vec<Tls> = places.iter().map(|(.., place, name)| connect(place, &config, name)).collect();
    for _ in 0..rounds {
        for (index, (.., place, name)) in places.iter().enumerate() {
            kept[index].samples.extend((0..BLOCK).map(|_| request(&mut streams[index], name)));
            for _ in 0..FRESH_BLOCK {
                let begun = Instant::now();
                request(&mut connect(place, &config, name), name);
                new[index].samples.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    report("an HTTPS request on an open connection", "µs", Some("direct"), &kept, &[], &[]);
    report("a new HTTPS connection with one request", "µs", Some("direct"), &new, &[], &[]);
}
