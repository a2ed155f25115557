//! The first pass over `config.json`, on plain JSON: it leaves only keys that icerun carries out (see [`super::fields`])
//! and corrects values that the typed reader would misread.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fields;
use crate::{Error, Result, Step};

/// The first version of the specification that `ociVersion` may name.
pub(super) const OCI_VERSION_MIN: &str = "1.0.0";
/// The version of the specification whose keys are in [`fields`].
pub(super) const OCI_VERSION_MAX: &str = "1.3.0";

/// The largest file of JSON that is read.
pub(super) const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;

const CAPABILITY_SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];

/// Parses the bytes. Returns the specification, in the reader's type, and warnings.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, Vec<String>)> {
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(Step::Bundle, "config.json", format!("not valid JSON: {error}")))?;
    check_version(&value)?;
    let mut warnings = Vec::new();
    fields::keep(&mut value, fields::CONFIG, "", &mut warnings)?;
    drop_unknown_capabilities(value.get_mut("process"), &mut warnings);
    serde_json::from_value(value)
        .map(|spec| (spec, warnings))
        .map_err(|error| Error::invalid(Step::Bundle, "config.json", format!("not an OCI configuration: {error}")))
}

/// The specification follows semantic versioning: every 1.x is read alike. A configuration without a version is taken, as
/// runc takes it.
fn check_version(value: &Value) -> Result<()> {
    let Some(version) = value.get("ociVersion").and_then(Value::as_str) else { return Ok(()) };
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u32>> = core.split('.').map(|part| part.parse().ok()).collect();
    if matches!(numbers[..], [Some(1), Some(_), Some(_)]) {
        return Ok(());
    }
    let cause = format!("unknown version {version:?}; versions from {OCI_VERSION_MIN} to {OCI_VERSION_MAX} are read");
    Err(Error::unsupported(Step::Bundle, "ociVersion", cause))
}

/// Parses the process object of an exec. `subject` names the file in errors.
pub(super) fn parse_process(bytes: &[u8], subject: &str) -> Result<(oci_spec::runtime::Process, Vec<String>)> {
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(Step::Bundle, subject, format!("not valid JSON: {error}")))?;
    let mut warnings = Vec::new();
    fields::keep(&mut value, fields::PROCESS, "process", &mut warnings)?;
    drop_unknown_capabilities(Some(&mut value), &mut warnings);
    // A process object without a user is root's, as runc reads it.
    if let Some(process) = value.as_object_mut() {
        process.entry("user").or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
        process.entry("cwd").or_insert_with(|| "/".into());
    }
    serde_json::from_value(value)
        .map(|process| (process, warnings))
        .map_err(|error| Error::invalid(Step::Bundle, subject, format!("not an OCI process: {error}")))
}

/// "Any value which cannot be mapped to a relevant kernel interface … MUST be logged as a warning" (OCI config,
/// "Linux Process"); the typed reader would fail instead.
fn drop_unknown_capabilities(process: Option<&mut Value>, warnings: &mut Vec<String>) {
    let Some(sets) = process.and_then(|process| process.get_mut("capabilities")) else { return };
    for set in CAPABILITY_SETS {
        let Some(Value::Array(list)) = sets.get_mut(set) else { continue };
        list.retain(|name| {
            let known = name.as_str().is_some_and(|n| n.parse::<caps::Capability>().is_ok());
            if !known {
                warnings.push(format!("process.capabilities.{set}: unknown capability {name} is passed over"));
            }
            known
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::parse;
    use crate::Kind;

    const MINIMAL: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"user":{"uid":0,"gid":0},
        "cwd":"/","args":["sh"],"capabilities":{"bounding":["CAP_KILL","CAP_FROM_THE_FUTURE"]}},"linux":{}}"#;

    #[test]
    fn unknown_capabilities_are_warned_about() {
        let (spec, warnings) = parse::<Value>(MINIMAL.as_bytes()).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("CAP_FROM_THE_FUTURE"));
        assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn versions_of_another_major_are_refused() {
        let with = |version: &str| parse::<Value>(MINIMAL.replace("1.0.2", version).as_bytes());
        for good in [super::OCI_VERSION_MIN, super::OCI_VERSION_MAX, "1.0.2-dev", "1.0.0-rc5+x", "1.9.0"] {
            with(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in ["0.9.0", "2.0.0", "1", "1.0", "1.0.0.0", "one", ""] {
            let error = with(bad).unwrap_err();
            assert_eq!((error.kind, error.subject.as_str()), (Kind::Unsupported, "ociVersion"), "{bad}");
        }
    }

    #[test]
    fn bad_json_says_where() {
        let error = parse::<Value>(b"{\"a\":").unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
