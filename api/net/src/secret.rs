//! Secrets at rest: one key per installation, and the texts sealed with it.
//!
//! Owns: the key file, and the format of a sealed text. A reader of both the data folder's key and a sealed text can
//! read the secret; sealing protects copies that leave the folder without the key, such as a database backup.
//!
//! Invariants: a key file is readable by its owner only, from its first moment; it exists complete or not at all. A
//! text opens only under the context it was sealed for, so it cannot be moved from one box to another. Nothing here
//! shows a secret in `Debug` or in an error.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::{Cause, Error};

const KEY_BYTES: usize = 32;
/// The first byte of a sealed text: the format version.
const FORM: u8 = 1;
/// The mode bits that give access to group and others.
const OTHERS: u32 = 0o077;
/// Prefix of the context in the authenticated data.
const DOMAIN: &str = "icebox sealed ";

/// A secret that is wiped on drop.
pub(super) struct Wiped(pub(super) Vec<u8>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0);
        // The compiler may drop writes to memory that is never read again; this reads it.
        black_box(&self.0);
    }
}

/// The file of the installation's key in the data directory.
pub const KEY_FILE: &str = "secrets.key";
/// What the key for signatures is derived with: one key has one use.
const SIGNING: &[u8] = b"icebox signing key";

/// The sealing key.
pub struct SealingKey {
    key: LessSafeKey,
    signing: hmac::Key,
    random: SystemRandom,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}

impl SealingKey {
    /// Loads the key from the file at `path`. Makes one if there is no file.
    ///
    /// # Errors
    /// The file differs from what this makes: another length, readable by others, or another owner. It is left
    /// unchanged, because sealed texts may need it.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        let random = SystemRandom::new();
        if let Some(found) = read_private(path, KEY_BYTES)? {
            return Self::of(path, &found, random);
        }
        let mut new = Wiped(vec![0; KEY_BYTES]);
        random.fill(&mut new.0).map_err(|_| invalid("make key", path, "the system has no random numbers"))?;
        if create_private(path, &new.0)? {
            return Self::of(path, &new, random);
        }
        let other = read_private(path, KEY_BYTES)?;
        let other = other.ok_or_else(|| invalid("read key", path, "the file came and went"))?;
        Self::of(path, &other, random)
    }

    fn of(path: &Path, bytes: &Wiped, random: SystemRandom) -> Result<Self, Error> {
        let wrong = |_| invalid("read key", path, "the file must have exactly 32 bytes");
        let key = UnboundKey::new(&AES_256_GCM, &bytes.0).map_err(wrong)?;
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes.0), SIGNING);
        let signing = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        Ok(Self { key: LessSafeKey::new(key), signing, random })
    }

    /// The signature (HMAC-SHA256) of a text that may be read, but not changed, without the key.
    #[must_use]
    pub fn sign(&self, context: &str, text: &[u8]) -> Vec<u8> {
        hmac::sign(&self.signing, &signed(context, text)).as_ref().to_vec()
    }

    /// True if this is the signature of the text for that context.
    #[must_use]
    pub fn is_signed(&self, context: &str, text: &[u8], signature: &[u8]) -> bool {
        hmac::verify(&self.signing, &signed(context, text), signature).is_ok()
    }

    /// Seals `plain`. It opens only with the same `context`, such as `attach_headers/<id of a box>`.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |_| Error::new("seal", context, Cause::Invalid("the system has no random numbers"));
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let mut text = Vec::with_capacity(1 + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        text.push(FORM);
        text.extend_from_slice(&nonce);
        text.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, bound_to(context), &mut text[1 + NONCE_LEN..]);
        let tag = tag.map_err(|_| Error::new("seal", context, Cause::Invalid("the text is too long")))?;
        text.extend_from_slice(tag.as_ref());
        Ok(text)
    }

    /// Opens a sealed text.
    ///
    /// # Errors
    /// It was sealed with another key or for another context, or was changed since.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let wrong = || Error::new("open what is sealed for", context, Cause::Invalid("another key, context or text"));
        let (form, rest) = sealed.split_first().ok_or_else(wrong)?;
        if *form != FORM || rest.len() < NONCE_LEN {
            return Err(wrong());
        }
        let (nonce, text) = rest.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut text = Wiped(text.to_vec());
        let plain = self.key.open_in_place(nonce, bound_to(context), &mut text.0).map_err(|_| wrong())?;
        Ok(plain.to_vec())
    }
}

/// A context has no NUL, so no two pairs give the same bytes.
fn signed(context: &str, text: &[u8]) -> Vec<u8> {
    [DOMAIN.as_bytes(), context.as_bytes(), b"\0", text].concat()
}

fn bound_to(context: &str) -> Aad<Vec<u8>> {
    Aad::from([DOMAIN.as_bytes(), context.as_bytes()].concat())
}

fn invalid(operation: &'static str, path: &Path, why: &'static str) -> Error {
    Error::new(operation, path.display().to_string(), Cause::Invalid(why))
}

/// The content of a file that only its owner may read; none if there is no such file.
pub(super) fn read_private(path: &Path, bytes_max: usize) -> Result<Option<Wiped>, Error> {
    let failed = |e: std::io::Error| Error::new("read", path.display().to_string(), e);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let meta = file.metadata().map_err(failed)?;
    let ours = rustix::process::geteuid().as_raw();
    if !meta.is_file() {
        return Err(invalid("read", path, "this must be a regular file"));
    }
    if meta.uid() != ours {
        return Err(invalid("read", path, "the file belongs to another user"));
    }
    if meta.mode() & OTHERS != 0 {
        return Err(invalid("read", path, "others than the owner may use the file; its mode must be 0600"));
    }
    // One byte more than allowed reveals a longer file.
    let mut content = Wiped(Vec::with_capacity(bytes_max + 1));
    (&mut file).take(bytes_max as u64 + 1).read_to_end(&mut content.0).map_err(failed)?;
    if content.0.len() > bytes_max {
        return Err(invalid("read", path, "the file is longer than what is kept there"));
    }
    Ok(Some(content))
}

/// Creates such a file; false if it exists already, which is left unchanged.
pub(super) fn create_private(path: &Path, content: &[u8]) -> Result<bool, Error> {
    let failed = |e: std::io::Error| Error::new("write", path.display().to_string(), e);
    let folder = path.parent().ok_or_else(|| invalid("write", path, "this has no folder"))?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let new = Path::new(&name);
    let write = || -> std::io::Result<bool> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
        file.write_all(content)?;
        file.sync_all()?;
        match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => File::open(folder)?.sync_all().map(|()| true),
            Err(rustix::io::Errno::EXIST) => fs::remove_file(new).map(|()| false),
            Err(e) => Err(e.into()),
        }
    };
    write().map_err(|e| {
        let _ = fs::remove_file(new);
        failed(e)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_sealed_text_opens_with_its_key_and_context_only() {
        let folder = tempfile::tempdir().expect("folder");
        let key = SealingKey::load_or_create(&folder.path().join("a")).expect("key");
        let other = SealingKey::load_or_create(&folder.path().join("b")).expect("key");
        let sealed = key.seal("attach_headers/box", b"a secret").expect("sealed");
        assert_eq!(key.open("attach_headers/box", &sealed).expect("opened"), b"a secret");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_ne!(sealed, key.seal("attach_headers/box", b"a secret").expect("sealed"), "a nonce came twice");
        assert!(key.open("attach_headers/other", &sealed).is_err());
        assert!(other.open("attach_headers/box", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("attach_headers/box", &changed).is_err(), "byte {at}");
            assert!(key.open("attach_headers/box", &sealed[..at]).is_err(), "the first {at}");
        }
        let empty = key.seal("", b"").expect("sealed");
        assert!(key.open("", &empty).expect("opened").is_empty());
    }

    #[test]
    fn a_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        let sealed = SealingKey::load_or_create(&path).expect("key").seal("x", b"text").expect("sealed");
        let meta = fs::metadata(&path).expect("the file");
        assert_eq!((meta.len(), meta.mode() & 0o7777), (32, 0o600));
        assert_eq!(SealingKey::load_or_create(&path).expect("key").open("x", &sealed).expect("opened"), b"text");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "something was left beside it");
        assert!(!create_private(&path, b"another").expect("not made"));
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_left() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        let refusal = || SealingKey::load_or_create(&path).expect_err("refused").chain();
        for (content, mode, why) in [
            (&b"short"[..], 0o600, "exactly 32 bytes"),
            (b"", 0o600, "exactly 32 bytes"),
            (&[7; 33], 0o600, "longer"),
            (&[7; 32], 0o640, "0600"),
            (&[7; 32], 0o604, "0600"),
        ] {
            fs::write(&path, content).expect("write");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode");
            assert!(refusal().contains(why), "{}", refusal());
            assert_eq!(fs::read(&path).expect("read"), content);
            fs::remove_file(&path).expect("remove");
        }
        std::os::unix::fs::symlink("/dev/zero", &path).expect("link");
        SealingKey::load_or_create(&path).expect_err("a link is no file");
        fs::remove_file(&path).expect("remove");
        fs::create_dir(&path).expect("folder");
        assert!(refusal().contains("regular file"), "{}", refusal());
    }

    #[test]
    fn many_makers_get_the_same_key() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        let seal = || SealingKey::load_or_create(&path).expect("key").seal("x", b"y").expect("sealed");
        let all: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(seal)).collect();
            threads.into_iter().map(|t| t.join().expect("a thread")).collect()
        });
        let key = SealingKey::load_or_create(&path).expect("key");
        assert!(all.iter().all(|sealed| key.open("x", sealed).is_ok()));
    }
}
