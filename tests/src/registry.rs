//! A registry on this machine: Debian's docker-registry, at a port that the kernel gives it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::wait::wait_for;

/// The user of a registry with a password.
pub const USER: &str = "me";
/// Its password.
pub const PASSWORD: &str = "secret";
/// `me` and bcrypt's digest of `secret`.
const HTPASSWD: &str = "me:$2b$04$eKLqtCWEm41jphISUXF2u.tg6.S99zFykWFG5EPzZdeO05uXZFBYe\n";
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A registry; it ends with this, or with the thread that has started it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// One without TLS and without a password, with its files below `dir`.
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        Self::run(dir, "", "")
    }

    /// One with TLS, whose authority is [`Registry::authority`], that lets only [`USER`] in.
    #[must_use]
    pub fn start_closed(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let at = |name: &str| dir.join(name).display().to_string();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        fs::write(at("ca.crt"), authority.self_signed(&key).expect("a certificate").pem()).expect("written");
        let issuer = Issuer::new(authority, key);
        let own = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        let certificate = params.signed_by(&own, &issuer).expect("a certificate");
        fs::write(at("server.crt"), certificate.pem()).expect("written");
        fs::write(at("server.key"), own.serialize_pem()).expect("written");
        fs::write(at("htpasswd"), HTPASSWD).expect("written");
        let tls = format!("  tls: {{certificate: {}, key: {}}}\n", at("server.crt"), at("server.key"));
        Self::run(dir, &tls, &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", at("htpasswd")))
    }

    fn run(dir: &Path, tls: &str, auth: &str) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let (config, log) = (dir.join("config.yml"), dir.join("log"));
        let data = dir.join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n\
             {tls}{auth}",
            data.display()
        );
        fs::write(&config, text).expect("written");
        let output = File::create(&log).expect("a log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(&config);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("dup")).stderr(output);
        let child = command.spawn().expect("docker-registry");
        let address = wait_for(START_DEADLINE, "the registry to tell its address", || {
            let text = fs::read_to_string(&log).expect("the log");
            let (_, rest) = text.split_once("listening on ")?;
            rest.split(['"', ',']).next()?.parse().ok()
        });
        Self { child, dir: dir.to_owned(), address }
    }

    /// Host and port, as names of images have them.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The directory with `ca.crt`, as clients want it.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        let dir = self.dir.join("authority");
        fs::create_dir_all(&dir).expect("a directory");
        fs::copy(self.dir.join("ca.crt"), dir.join("ca.crt")).expect("copied");
        dir
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).expect("the log")
    }

    /// A way to it that breaks: of the connections on which more than `bytes` come back, the first `cuts` are cut there.
    #[must_use]
    pub fn behind_a_bad_line(&self, bytes: u64, cuts: usize) -> BadLine {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = listener.local_addr().expect("an address");
        let (to, left) = (self.address, Arc::new(AtomicUsize::new(cuts)));
        let counted = Arc::clone(&left);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let left = Arc::clone(&counted);
                // A connection that breaks is what this is for.
                thread::spawn(move || drop(carry(near, to, bytes, &left)));
            }
        });
        BadLine { address, left }
    }
}

/// A way to a registry that breaks.
#[derive(Debug)]
pub struct BadLine {
    address: SocketAddr,
    left: Arc<AtomicUsize>,
}

impl BadLine {
    /// Host and port.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Cuts that are still to come.
    #[must_use]
    pub fn cuts_left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

fn carry(mut near: TcpStream, to: SocketAddr, bytes: u64, left: &AtomicUsize) -> std::io::Result<()> {
    let mut far = TcpStream::connect(to)?;
    let (mut from_near, mut to_far) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_near, &mut to_far);
        let _ = to_far.shutdown(Shutdown::Write);
    });
    let mut buffer = [0; 16 * 1024];
    let mut passed = 0;
    loop {
        let got = far.read(&mut buffer)?;
        if got == 0 {
            return near.shutdown(Shutdown::Write);
        }
        passed += got as u64;
        let take = |left: usize| left.checked_sub(1);
        if passed > bytes && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            near.shutdown(Shutdown::Both)?;
            return far.shutdown(Shutdown::Both);
        }
        near.write_all(&buffer[..got])?;
    }
}
