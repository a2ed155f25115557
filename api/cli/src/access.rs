//! Which server, and with which key.
//!
//! Order: the option, the variable of the npm and PyPI clients, then the facts that the `iceboxd` of this machine left in
//! its run directory. The key found there is only ever sent to that server: a URL that points elsewhere needs a key of
//! its own.

use std::path::Path;

use reqwest::Url;
use serde::Deserialize;
use serde_json::json;

use super::args::Global;
use super::error::Error;
use super::output::Output;

const URL_VARIABLE: &str = "UPSTASH_BOX_BASE_URL";
const KEY_VARIABLE: &str = "UPSTASH_BOX_API_KEY";
/// A facts or key file is a few hundred bytes; more is not ours.
const FACTS_BYTES_MAX: u64 = 64 * 1024;

/// A server and the key for it.
#[derive(Clone)]
pub(crate) struct Access {
    /// The base URL; its path, if any, is a prefix.
    pub(crate) url: Url,
    /// The API key.
    pub(crate) key: String,
}

/// `<run-dir>/iceboxd.json`.
#[derive(Debug, Deserialize)]
struct Facts {
    url: String,
}

/// What the options and the environment say.
#[derive(Debug, Default)]
struct Asked {
    url: Option<String>,
    key: Option<String>,
}

/// Finds server and key.
pub(crate) fn resolve(global: &Global) -> Result<Access, Error> {
    let variable = |name| std::env::var(name).ok();
    let asked = Asked {
        url: global.url.clone().or_else(|| variable(URL_VARIABLE)).filter(|url| !url.is_empty()),
        key: global.key.clone().or_else(|| variable(KEY_VARIABLE)).filter(|key| !key.is_empty()),
    };
    resolve_asked(asked, &global.run_dir)
}

fn resolve_asked(asked: Asked, run_dir: &Path) -> Result<Access, Error> {
    let url = match &asked.url {
        Some(url) => parse_url(url)?,
        None => parse_url(&read_facts(run_dir)?.url)?,
    };
    let key = match asked.key {
        Some(key) => key,
        None if asked.url.is_none() || is_local_server(&url, run_dir) => read_key(run_dir)?,
        None => {
            return Err(Error::usage_with_hint(
                format!("no API key for {url}"),
                format!(
                    "give one by --key or ${KEY_VARIABLE}; the key of the iceboxd of this machine is not sent elsewhere"
                ),
            ));
        }
    };
    Ok(Access { url, key })
}

fn is_local_server(url: &Url, run_dir: &Path) -> bool {
    read_facts(run_dir).and_then(|facts| parse_url(&facts.url)).is_ok_and(|local| local.origin() == url.origin())
}

/// Parses and tidies a base URL. `localhost` becomes 127.0.0.1: a statically linked program should not depend on the
/// name service libraries of the machine for that.
fn parse_url(text: &str) -> Result<Url, Error> {
    let mut url = Url::parse(text)
        .map_err(|cause| Error::usage(format!("`{text}` is no URL ({cause}); write http://HOST:PORT")))?;
    match url.scheme() {
        "http" => {}
        "https" => {
            return Err(Error::usage_with_hint(
                format!("{url}: this build of icebox speaks no TLS"),
                "use http:// on this machine, or an SSH tunnel or a local proxy to a server elsewhere",
            ));
        }
        other => {
            return Err(Error::usage(format!("`{other}` is no scheme for {url}; write http://HOST:PORT")));
        }
    }
    if url.host_str() == Some("localhost") {
        url.set_host(Some("127.0.0.1")).map_err(|cause| Error::usage(format!("{url}: {cause}")))?;
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn read_facts(run_dir: &Path) -> Result<Facts, Error> {
    let path = run_dir.join("iceboxd.json");
    let text = read_small(
        &path,
        "no server is running here, as it seems: start it by `cargo xtask up`, or name one by --url",
    )?;
    serde_json::from_str(&text).map_err(|cause| Error::usage(format!("{} is not readable ({cause})", path.display())))
}

fn read_key(run_dir: &Path) -> Result<String, Error> {
    let path = run_dir.join("key");
    let text = read_small(&path, "give the API key by --key or $UPSTASH_BOX_API_KEY")?;
    match text.trim() {
        "" => Err(Error::usage(format!("{} is empty", path.display()))),
        key => Ok(key.to_owned()),
    }
}

fn read_small(path: &Path, hint: &str) -> Result<String, Error> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FACTS_BYTES_MAX).read_to_string(&mut text))
        .map_err(|cause| Error::usage_with_hint(format!("could not read {}: {cause}", path.display()), hint))?;
    Ok(text)
}

/// `icebox env`.
pub(crate) fn print_env(global: &Global, output: &Output) -> Result<(), Error> {
    let access = resolve(global)?;
    // The npm client removes one slash at the end only.
    let url = access.url.as_str().trim_end_matches('/').to_owned();
    if output.is_json() {
        return output.json(&json!({ URL_VARIABLE: url, KEY_VARIABLE: access.key }));
    }
    output.line(&format!("export {URL_VARIABLE}={} {KEY_VARIABLE}={}", quote(&url), quote(&access.key)))
}

/// Quotes a word for a POSIX shell, if it needs it.
fn quote(word: &str) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+,=".contains(&byte);
    if !word.is_empty() && word.bytes().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_dir(url: &str, key: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("iceboxd.json"), json!({"url": url, "pid": 1}).to_string()).expect("facts");
        std::fs::write(dir.path().join("key"), format!("{key}\n")).expect("key");
        dir
    }

    fn asked(url: Option<&str>, key: Option<&str>) -> Asked {
        Asked { url: url.map(str::to_owned), key: key.map(str::to_owned) }
    }

    fn failure(asked: Asked, dir: &Path) -> String {
        match resolve_asked(asked, dir) {
            Ok(access) => panic!("got {}", access.url),
            Err(refused) => refused.to_string(),
        }
    }

    #[test]
    fn the_local_server_is_found() {
        let dir = run_dir("http://127.0.0.1:7070", "box_k");
        let access = resolve_asked(asked(None, None), dir.path()).expect("found");
        assert_eq!((access.url.as_str(), access.key.as_str()), ("http://127.0.0.1:7070/", "box_k"));
    }

    #[test]
    fn the_local_key_stays_local() {
        let dir = run_dir("http://127.0.0.1:7070", "box_k");
        let same = resolve_asked(asked(Some("http://localhost:7070/"), None), dir.path()).expect("the same server");
        assert_eq!(same.key, "box_k");
        assert!(failure(asked(Some("http://127.0.0.1:7071"), None), dir.path()).contains("no API key"));
        assert!(failure(asked(Some("http://10.1.1.1:7070"), None), dir.path()).contains("no API key"));
    }

    #[test]
    fn what_is_given_wins() {
        let dir = run_dir("http://127.0.0.1:7070", "box_k");
        let access = resolve_asked(asked(Some("http://h:1/x"), Some("other")), dir.path()).expect("given");
        assert_eq!((access.url.as_str(), access.key.as_str()), ("http://h:1/x", "other"));
    }

    #[test]
    fn unusable_urls_are_explained() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(failure(asked(Some("https://h"), Some("k")), dir.path()).contains("no TLS"));
        assert!(failure(asked(Some("ftp://h"), Some("k")), dir.path()).contains("scheme"));
        assert!(failure(asked(Some("nonsense"), Some("k")), dir.path()).contains("no URL"));
        assert!(failure(asked(None, Some("k")), dir.path()).contains("iceboxd.json"));
    }

    #[test]
    fn words_for_the_shell_are_quoted() {
        assert_eq!(quote("http://127.0.0.1:7070"), "http://127.0.0.1:7070");
        assert_eq!(quote("a'b c"), r"'a'\''b c'");
        assert_eq!(quote("$(reboot)"), "'$(reboot)'");
        assert_eq!(quote(""), "''");
    }
}
