//! Headers that are added to a box's outgoing requests, by host.
//!
//! Owns: the validation of a client's headers, and the choice of headers for a host. Pure.
//!
//! Invariants: with valid names and values a request stays one request, with the same length, connection and host.
//! Values are secrets: nothing here shows one, and memory that held one is wiped where it is ours.

use std::collections::BTreeMap;
use std::fmt;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::error::{Error, Malformed};
use crate::hop_by_hop::is_hop_by_hop;
use crate::policy::DomainPattern;
use crate::secret::{SealingKey, Wiped};

/// Most patterns of one box.
pub(crate) const PATTERNS_MAX: usize = 64;
/// Most headers of one pattern.
pub const HEADERS_MAX: usize = 32;
/// Longest header name.
const NAME_BYTES_MAX: usize = 256;
/// Longest value.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// All names and values of a box, in bytes.
const TOTAL_BYTES_MAX: usize = 64 * 1024;

/// Headers that frame or route a message, beside the hop-by-hop ones.
const FORBIDDEN: [HeaderName; 3] = [header::CONTENT_LENGTH, header::EXPECT, header::HOST];

/// A client's request: headers by host pattern.
pub type Wanted = BTreeMap<String, BTreeMap<String, String>>;

/// The validated headers of a box.
#[derive(Clone, Default)]
pub struct HeaderRules {
    /// The most specific pattern first.
    rules: Vec<(DomainPattern, Vec<(HeaderName, HeaderValue)>)>,
}

impl fmt::Debug for HeaderRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |headers: &[(HeaderName, HeaderValue)]| headers.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        f.debug_map().entries(self.rules.iter().map(|(pattern, headers)| (pattern, names(headers)))).finish()
    }
}

impl HeaderRules {
    /// Validates a client's headers.
    ///
    /// # Errors
    /// The mistake; the text shows patterns and header names, never a value.
    pub fn check(wanted: &Wanted) -> Result<Self, Malformed> {
        let wrong = Malformed;
        if wanted.len() > PATTERNS_MAX {
            return Err(wrong(format!("more than {PATTERNS_MAX} host patterns")));
        }
        let sizes = wanted.values().flatten().map(|(name, value)| name.len() + value.len());
        if sizes.sum::<usize>() > TOTAL_BYTES_MAX {
            return Err(wrong(format!("more than {TOTAL_BYTES_MAX} bytes of names and values")));
        }
        let read = |(pattern, headers): (&String, &BTreeMap<String, String>)| {
            let parsed = DomainPattern::parse(pattern)?;
            // Another spelling would be another key where patterns are merged.
            if parsed.to_string() != *pattern {
                return Err(format!("'{parsed}' must be written like this, in lower case"));
            }
            let headers = read_headers(headers).map_err(|why| format!("{parsed}: {why}"))?;
            Ok((parsed, headers))
        };
        let rules = wanted.iter().map(read).collect::<Result<Vec<_>, String>>().map_err(wrong)?;
        Ok(Self::sorted(rules))
    }

    fn sorted(mut rules: Vec<(DomainPattern, Vec<(HeaderName, HeaderValue)>)>) -> Self {
        rules.sort_by(|(a, _), (b, _)| b.specificity().cmp(&a.specificity()).then_with(|| a.cmp(b)));
        Self { rules }
    }

    /// These rules, plus those of `general` whose pattern is not among these.
    #[must_use]
    pub fn over(&self, general: &Self) -> Self {
        let others = general.rules.iter().filter(|(p, _)| !self.rules.iter().any(|(own, _)| own == p));
        Self::sorted(self.rules.iter().chain(others).cloned().collect())
    }

    /// True if there are no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The headers for a host in its normal form: those of the most specific pattern. None if no pattern covers it.
    #[must_use]
    pub fn of(&self, host: &str) -> Option<&[(HeaderName, HeaderValue)]> {
        self.rules.iter().find(|(pattern, _)| pattern.covers(host)).map(|(_, headers)| headers.as_slice())
    }

    /// Sets the headers of a host in a request; they replace those of the same name.
    pub(crate) fn attach(&self, host: &str, request: &mut HeaderMap) {
        for (name, value) in self.of(host).unwrap_or_default() {
            request.insert(name.clone(), value.clone());
        }
    }

    /// The sealed form for storage. `context` names the owner.
    ///
    /// # Errors
    /// Sealing failed.
    pub fn seal(&self, key: &SealingKey, context: &str) -> Result<Vec<u8>, Error> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = |list: &[(HeaderName, HeaderValue)]| list.iter().map(|(n, v)| (n.to_string(), text(v))).collect();
        let wanted: Wanted = self.rules.iter().map(|(p, list)| (p.to_string(), headers(list))).collect();
        let json = Wiped(serde_json::to_vec(&wanted).map_err(|e| Error::new("write headers of", context, e))?);
        drop_values(wanted);
        key.seal(context, &json.0)
    }

    /// Opens the sealed form.
    ///
    /// # Errors
    /// It does not open, or is not a result of [`Self::seal`].
    pub fn open(key: &SealingKey, context: &str, sealed: &[u8]) -> Result<Self, Error> {
        let json = Wiped(key.open(context, sealed)?);
        // The cause could show the secret text.
        let strange = || {
            let cause = crate::error::Cause::Invalid("this was sealed by another version");
            Error::new("read headers of", context, cause)
        };
        let wanted: Wanted = serde_json::from_slice(&json.0).map_err(|_| strange())?;
        let rules = Self::check(&wanted).map_err(|_| strange());
        drop_values(wanted);
        rules
    }
}

/// Wipes the values of a list.
fn drop_values(wanted: Wanted) {
    wanted.into_values().flat_map(BTreeMap::into_values).for_each(|value| drop(Wiped(value.into_bytes())));
}

fn read_headers(headers: &BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    if headers.is_empty() || headers.len() > HEADERS_MAX {
        return Err(format!("a host pattern has between 1 and {HEADERS_MAX} headers"));
    }
    let mut list: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(headers.len());
    for (text, value) in headers {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
        let name = HeaderName::from_bytes(text.as_bytes()).ok().filter(|n| n.as_str().len() <= NAME_BYTES_MAX);
        let name = name.ok_or_else(|| format!("'{shown}' is not a name of a header"))?;
        if FORBIDDEN.contains(&name) || is_hop_by_hop(&name) {
            return Err(format!("the header {name} cannot be attached"));
        }
        if list.iter().any(|(other, _)| *other == name) {
            return Err(format!("the header {name} is there twice"));
        }
        let good = value.is_ascii() && value.len() <= VALUE_BYTES_MAX;
        let value = good.then(|| HeaderValue::from_str(value).ok()).flatten();
        let mut value = value.ok_or_else(|| {
            format!("the value of {name} is not a line of at most {VALUE_BYTES_MAX} printable ASCII characters")
        })?;
        // `Debug` of a holder then prints "Sensitive".
        value.set_sensitive(true);
        list.push((name, value));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: serde_json::Value) -> Result<HeaderRules, Malformed> {
        HeaderRules::check(&serde_json::from_value(json).expect("headers by pattern"))
    }

    fn value(rules: &HeaderRules, host: &str) -> Option<String> {
        rules.of(host).map(|headers| headers[0].1.to_str().expect("text").to_owned())
    }

    #[test]
    fn the_closest_pattern_wins_and_those_of_a_box_win() {
        let own = rules(serde_json::json!({
            "*.example.com": {"X-Key": "wide"}, "*.b.example.com": {"x-key": "near"}, "a.b.example.com": {"x-key": "exact"},
        }))
        .expect("rules");
        for (host, wanted) in [
            ("a.b.example.com", Some("exact")),
            ("c.b.example.com", Some("near")),
            ("b.example.com", Some("wide")),
            ("example.com", None),
            ("example.org", None),
        ] {
            assert_eq!(value(&own, host).as_deref(), wanted, "{host}");
        }
        let general = rules(serde_json::json!({
            "*.example.com": {"authorization": "general", "other": "x"}, "example.org": {"authorization": "general"},
        }))
        .expect("rules");
        let both = own.over(&general);
        assert_eq!(value(&both, "b.example.com").as_deref(), Some("wide"));
        assert_eq!(both.of("b.example.com").map(<[_]>::len), Some(1), "headers of one pattern are not mixed");
        assert_eq!(value(&both, "example.org").as_deref(), Some("general"));
        assert_eq!(both.rules.len(), 4);
    }

    #[test]
    fn attached_headers_replace() {
        let rules = rules(serde_json::json!({"example.com": {"authorization": "ours"}})).expect("rules");
        let mut map = HeaderMap::new();
        map.append("authorization", HeaderValue::from_static("theirs"));
        map.append("authorization", HeaderValue::from_static("theirs too"));
        rules.attach("example.com", &mut map);
        assert_eq!(map.get_all("authorization").iter().collect::<Vec<_>>(), ["ours"]);
    }

    #[test]
    fn what_would_change_the_message_is_refused() {
        let long = "v".repeat(VALUE_BYTES_MAX + 1);
        for (pattern, name, value) in [
            ("Example.com", "x", "y"),
            ("example.com.", "x", "y"),
            ("*", "x", "y"),
            ("https://example.com", "x", "y"),
            ("192.0.2.1", "x", "y"),
            ("example.com", "", "y"),
            ("example.com", "a b", "y"),
            ("example.com", "a:", "y"),
            ("example.com", ":authority", "y"),
            ("example.com", "Host", "y"),
            ("example.com", "content-length", "1"),
            ("example.com", "Transfer-Encoding", "chunked"),
            ("example.com", "connection", "close"),
            ("example.com", "keep-alive", "1"),
            ("example.com", "upgrade", "h2c"),
            ("example.com", "x", "secret\r\ny: z"),
            ("example.com", "x", "secret\n"),
            ("example.com", "x", "secret\0"),
            ("example.com", "x", "secret\u{e9}"),
            ("example.com", "x", long.as_str()),
        ] {
            let refusal = rules(serde_json::json!({pattern: {name: value}})).expect_err(pattern);
            let text = refusal.to_string();
            assert!(!text.contains("secret"), "{text}");
        }
        assert!(rules(serde_json::json!({"example.com": {}})).is_err());
        assert!(rules(serde_json::json!({"example.com": {"A": "1", "a": "2"}})).is_err());
        let many: Wanted =
            (0..=PATTERNS_MAX).map(|n| (format!("n{n}.example"), [("a".into(), "b".into())].into())).collect();
        assert!(HeaderRules::check(&many).is_err());
        let heavy: Wanted =
            (0..9).map(|n| (format!("n{n}.example"), [("a".into(), "b".repeat(8000))].into())).collect();
        assert!(HeaderRules::check(&heavy).is_err());
    }

    #[test]
    fn values_are_not_shown_and_come_back_sealed() {
        let rules = rules(serde_json::json!({"example.com": {"authorization": "hidden"}})).expect("rules");
        let shown = format!("{rules:?} {rules:#?} {:?}", rules.of("example.com"));
        assert!(shown.contains("authorization") && !shown.contains("hidden"), "{shown}");
        let folder = tempfile::tempdir().expect("folder");
        let key = SealingKey::load_or_create(&folder.path().join("key")).expect("key");
        let sealed = rules.seal(&key, "attach_headers/a").expect("sealed");
        let back = HeaderRules::open(&key, "attach_headers/a", &sealed).expect("opened");
        assert_eq!(value(&back, "example.com").as_deref(), Some("hidden"));
        assert!(!format!("{back:?} {:?}", back.of("example.com")).contains("hidden"));
        assert!(HeaderRules::open(&key, "attach_headers/b", &sealed).is_err());
        let strange = key.seal("attach_headers/a", b"{\"hidden\": 1}").expect("sealed");
        let error = HeaderRules::open(&key, "attach_headers/a", &strange).expect_err("strange").chain();
        assert!(!error.contains("hidden"), "{error}");
    }
}
