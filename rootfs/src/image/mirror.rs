//! The source of packages: the mirror that this machine's own package manager is configured to use.
//!
//! Reads `/etc/apt/sources.list` and `/etc/apt/sources.list.d/*.{list,sources}`; understands the one-line and the
//! deb822 format as far as a base system needs. No mirror is built in: without a configured one, an error says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{At, Cause, Error, Result, Step};

/// Names the mirror to use instead of the machine's own.
pub(super) const MIRROR_VARIABLE: &str = "ICEBOX_DEBIAN_MIRROR";
/// The keys that sign Debian's archive, from the package debian-archive-keyring.
const DEFAULT_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A mirror and the keys its content is signed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) uri: String,
    pub(super) keyring: PathBuf,
}

/// One place that apt is configured to take binary packages from.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<PathBuf>,
}

/// The mirror for `suite`: the `wished` one, else the machine's source of that suite, else a source that is a complete
/// Debian archive by its path (it holds every suite).
pub(super) fn find(wished: Option<String>, apt_dir: &Path, suite: &str) -> Result<Mirror> {
    if let Some(uri) = wished.filter(|uri| !uri.is_empty()) {
        return Ok(Mirror { uri, keyring: DEFAULT_KEYRING.into() });
    }
    choose(&read_sources(apt_dir)?, suite).ok_or_else(|| {
        let why = Cause::Missing(
            "no Debian mirror is configured on this machine; set ICEBOX_DEBIAN_MIRROR to the URL of one",
        );
        Error::new(Step::FindMirror, apt_dir.display().to_string(), why)
    })
}

fn choose(sources: &[Source], suite: &str) -> Option<Mirror> {
    let usable = |source: &&Source| {
        (source.uri.starts_with("http://") || source.uri.starts_with("https://") || source.uri.starts_with("file:"))
            && source.components.iter().any(|component| component == "main")
    };
    let same_suite = sources.iter().filter(usable).find(|source| source.suites.iter().any(|name| name == suite));
    let whole_archive =
        || sources.iter().filter(usable).find(|source| source.uri.trim_end_matches('/').ends_with("/debian"));
    let source = same_suite.or_else(whole_archive)?;
    let keyring = source.signed_by.clone().unwrap_or_else(|| DEFAULT_KEYRING.into());
    Some(Mirror { uri: source.uri.clone(), keyring })
}

fn read_sources(apt_dir: &Path) -> Result<Vec<Source>> {
    let mut paths = vec![apt_dir.join("sources.list")];
    let parts = apt_dir.join("sources.list.d");
    match fs::read_dir(&parts) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry.at(Step::FindMirror, &parts)?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).at(Step::FindMirror, &parts),
    }
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let parse = match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => parse_one_line,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        match fs::read_to_string(&path) {
            Ok(text) => sources.extend(parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at(Step::FindMirror, &path),
        }
    }
    Ok(sources)
}

/// `deb [option=value ...] URI suite component...`
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t'])) else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        sources.push(Source {
            uri: uri.to_owned(),
            suites: vec![suite.to_owned()],
            components: words.map(str::to_owned).collect(),
            signed_by: signed_by.and_then(keyring_path),
        });
    }
    sources
}

/// Stanzas of `Field: value` lines; a line that begins with white space continues the field above it.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(source_of_stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn source_of_stanza(fields: &[(String, String)]) -> Vec<Source> {
    let get = |name: &str| fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str());
    let words = |name: &str| get(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let disabled = matches!(get("enabled"), "no" | "false" | "off" | "0");
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    words("uris")
        .into_iter()
        .map(|uri| Source {
            uri,
            suites: words("suites"),
            components: words("components"),
            signed_by: keyring_path(get("signed-by")),
        })
        .collect()
}

/// A keyring given as a file; fingerprints and keys written into the stanza are left to the default keyring.
fn keyring_path(value: &str) -> Option<PathBuf> {
    let first = value.split([' ', ',']).next()?;
    first.starts_with('/').then(|| first.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
# an older snapshot
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/own.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
";

    #[test]
    fn deb822_gives_the_source_of_the_suite() {
        let mirror = choose(&parse_deb822(DEB822), "bookworm").unwrap();
        assert_eq!(
            mirror,
            Mirror { uri: "http://mirror.example/debian".into(), keyring: "/usr/share/keyrings/own.gpg".into() }
        );
    }

    #[test]
    fn one_line_format_with_options() {
        let text = "# deb http://no.example/debian bookworm main\ndebs x\n\
                    deb-src http://src.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://yes.example/debian/ bookworm main # tail\n";
        let mirror = choose(&parse_one_line(text), "bookworm").unwrap();
        assert_eq!(mirror, Mirror { uri: "http://yes.example/debian/".into(), keyring: "/k.gpg".into() });
    }

    #[test]
    fn a_machine_of_another_suite_still_has_a_whole_archive() {
        let text = "deb http://mirror.example/other trixie main\ndeb http://mirror.example/debian trixie main\n";
        assert_eq!(choose(&parse_one_line(text), "bookworm").unwrap().uri, "http://mirror.example/debian");
        assert_eq!(choose(&parse_one_line("deb http://mirror.example/x trixie main\n"), "bookworm"), None);
    }

    #[test]
    fn both_places_are_read_and_a_bare_machine_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(None, dir.path(), "bookworm").unwrap_err().kind(), crate::ErrorKind::Missing);
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        fs::write(dir.path().join("sources.list.d/debian.sources"), DEB822).unwrap();
        fs::write(dir.path().join("sources.list.d/x.list.disabled"), "deb http://bad.example/debian bookworm main")
            .unwrap();
        assert_eq!(find(None, dir.path(), "bookworm").unwrap().uri, "http://mirror.example/debian");
    }
}
