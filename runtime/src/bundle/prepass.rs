//! The first pass over `config.json`, on plain JSON: it corrects values that the typed reader would misread and refuses
//! unsupported fields by name.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result, Step};

/// Unsupported parts of the specification that change the container's rights or guarantees.
const UNSUPPORTED: [(&str, &str); 17] = [
    ("/hooks/prestart", "hooks"),
    ("/hooks/createRuntime", "hooks"),
    ("/hooks/createContainer", "hooks"),
    ("/hooks/startContainer", "hooks"),
    ("/hooks/poststart", "hooks"),
    ("/hooks/poststop", "hooks"),
    ("/process/apparmorProfile", "AppArmor profiles"),
    ("/process/selinuxLabel", "SELinux labels"),
    ("/process/ioPriority", "I/O priorities"),
    ("/process/scheduler", "schedulers"),
    ("/process/execCPUAffinity", "exec CPU affinity"),
    ("/linux/intelRdt", "Intel RDT"),
    ("/linux/memoryPolicy", "memory policies"),
    ("/linux/netDevices", "network devices"),
    ("/linux/personality", "personalities"),
    ("/linux/timeOffsets", "time namespaces"),
    ("/linux/mountLabel", "SELinux labels"),
];

const CAPABILITY_SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];

/// Parses the bytes. Returns the specification, in the reader's type, and warnings.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, Vec<String>)> {
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(Step::Bundle, "config.json", format!("not valid JSON: {error}")))?;
    refuse_unsupported(&value)?;
    let warnings = drop_unknown_capabilities(&mut value);
    serde_json::from_value(value)
        .map(|spec| (spec, warnings))
        .map_err(|error| Error::invalid(Step::Bundle, "config.json", format!("not an OCI configuration: {error}")))
}

/// The fields of a process object that take effect, or that are refused by name.
const PROCESS_KEYS: [&str; 15] = [
    "terminal",
    "consoleSize",
    "user",
    "args",
    "env",
    "cwd",
    "capabilities",
    "rlimits",
    "noNewPrivileges",
    "apparmorProfile",
    "oomScoreAdj",
    "scheduler",
    "selinuxLabel",
    "ioPriority",
    "execCPUAffinity",
];

/// Parses the process object of an exec. `subject` names the file in errors.
pub(super) fn parse_process(bytes: &[u8], subject: &str) -> Result<(oci_spec::runtime::Process, Vec<String>)> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(Step::Bundle, subject, format!("not valid JSON: {error}")))?;
    let unknown = value.as_object().into_iter().flatten().find(|(key, _)| !PROCESS_KEYS.contains(&key.as_str()));
    if let Some((key, _)) = unknown {
        return Err(Error::unsupported(Step::Bundle, format!("process.{key}"), "unknown, so it would have no effect"));
    }
    let mut value = serde_json::json!({ "process": value });
    refuse_unsupported(&value)?;
    let warnings = drop_unknown_capabilities(&mut value);
    // A process object without a user is root's, as runc reads it.
    if let Some(process) = value["process"].as_object_mut() {
        process.entry("user").or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
        process.entry("cwd").or_insert_with(|| "/".into());
    }
    serde_json::from_value(value["process"].take())
        .map(|process| (process, warnings))
        .map_err(|error| Error::invalid(Step::Bundle, subject, format!("not an OCI process: {error}")))
}

fn refuse_unsupported(value: &Value) -> Result<()> {
    for (pointer, what) in UNSUPPORTED {
        let set = match value.pointer(pointer) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        if set {
            return Err(Error::unsupported(
                Step::Bundle,
                pointer.trim_start_matches('/').replace('/', "."),
                format!("{what} are not supported yet"),
            ));
        }
    }
    Ok(())
}

/// "Any value which cannot be mapped to a relevant kernel interface … MUST be logged as a warning" (OCI config,
/// "Linux Process"); the typed reader would fail instead.
fn drop_unknown_capabilities(value: &mut Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for set in CAPABILITY_SETS {
        let Some(Value::Array(list)) = value.pointer_mut(&format!("/process/capabilities/{set}")) else { continue };
        list.retain(|name| {
            let known = name.as_str().is_some_and(|n| n.parse::<caps::Capability>().is_ok());
            if !known {
                warnings.push(format!("process.capabilities.{set}: unknown capability {name} is passed over"));
            }
            known
        });
    }
    warnings
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
    fn what_is_not_done_is_refused_by_name() {
        let text = MINIMAL.replace(r#""linux":{}"#, r#""linux":{},"hooks":{"poststop":[{"path":"/x"}]}"#);
        let error = parse::<Value>(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert_eq!(error.subject, "hooks.poststop");
        let empty = MINIMAL.replace(r#""linux":{}"#, r#""linux":{},"hooks":{"poststop":[]}"#);
        parse::<Value>(empty.as_bytes()).unwrap();
    }

    #[test]
    fn bad_json_says_where() {
        let error = parse::<Value>(b"{\"a\":").unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
