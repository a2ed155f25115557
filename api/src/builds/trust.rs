//! What the commands of a build trust when they go through the daemon's network: what this host trusts. A proxy of the
//! house may answer for a server with a certificate of its own.

use std::io;
use std::path::{Path, PathBuf};

/// The host's certificates, where distributions keep them.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// The copy in the box, below the image: the image does not get it.
const DIR: &str = ".icebox";
const FILE: &str = "certificates.pem";
/// Variables of programs that look for certificates.
const VARIABLES: [&str; 7] = [
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];
/// Variables that name a proxy. curl reads the first in lower case only.
const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
/// Variables with the hosts that are reached without a proxy.
const DIRECT: [&str; 2] = ["no_proxy", "NO_PROXY"];
const LOOPBACK: &str = "localhost,127.0.0.1,::1";

/// Copies the host's certificates into the lowest layer of a box.
pub(super) fn put_into(root: &Path) -> io::Result<()> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let mut bundles = named.into_iter().chain(BUNDLES.map(PathBuf::from));
    let Some(bundle) = bundles.find(|path| path.is_file()) else { return Ok(()) };
    let dir = root.join(DIR);
    std::fs::create_dir(&dir)?;
    std::fs::copy(bundle, dir.join(FILE)).map(|_| ())
}

/// Adds the variables that lead a command through the proxy; what the Boxfile has set stays.
pub(super) fn add_env(env: &mut Vec<(String, String)>, proxy: &str) {
    let certificates = format!("/{DIR}/{FILE}");
    let proxies = PROXIES.map(|name| (name, proxy));
    let direct = DIRECT.map(|name| (name, LOOPBACK));
    let trust = VARIABLES.map(|name| (name, certificates.as_str()));
    for (name, value) in proxies.into_iter().chain(direct).chain(trust) {
        if !env.iter().any(|(known, _)| known == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
}
