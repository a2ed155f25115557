//! The agent settings of a new box. Many programs set an agent and use the box without it.
//!
//! An agent is stored and shown; this version runs none.

use serde_json::Value;

use crate::refusal::Refusal;

/// Longest harness or model.
const WORD_BYTES_MAX: usize = 256;
/// Longest program of an agent, as JSON.
const RUNNER_BYTES_MAX: usize = 64 * 1024;
/// The harness that brings its own program.
const CUSTOM: &str = "custom";

/// The agent settings of an owner.
#[derive(Debug, Clone, Default)]
pub struct AgentRequest {
    /// The program that drives the model.
    pub harness: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// The program of the harness `custom`: an object with `command`, and perhaps `args` and `protocol`.
    pub custom_runner: Option<Value>,
}

impl AgentRequest {
    /// The agent, checked. The clients read harness and model alike, so a model implies its harness.
    pub(super) fn checked(self) -> Result<Self, Refusal> {
        let (harness, model) = (word("agent", self.harness)?, word("model", self.model)?);
        let harness = harness.or_else(|| model.as_deref().map(|model| harness_of(model).to_owned()));
        let is_custom = harness.as_deref() == Some(CUSTOM);
        if let Some(runner) = &self.custom_runner {
            if !is_custom {
                return Err(Refusal::Invalid("custom_runner goes with the agent 'custom' only".into()));
            }
            if !runner["command"].is_string() || runner.to_string().len() > RUNNER_BYTES_MAX {
                let text =
                    format!("custom_runner must be an object with `command`, of at most {RUNNER_BYTES_MAX} bytes");
                return Err(Refusal::Invalid(text));
            }
        }
        let model = model.or_else(|| is_custom.then(|| CUSTOM.to_owned()));
        Ok(Self { harness, model, custom_runner: self.custom_runner })
    }
}

/// A word; an empty one counts as none.
fn word(what: &str, value: Option<String>) -> Result<Option<String>, Refusal> {
    match value.filter(|value| !value.is_empty()) {
        Some(value) if value.len() > WORD_BYTES_MAX || value.chars().any(char::is_control) => {
            let text = format!("{what} must have at most {WORD_BYTES_MAX} bytes, without control characters");
            Err(Refusal::Invalid(text))
        }
        other => Ok(other),
    }
}

/// The default harness of a model.
fn harness_of(model: &str) -> &'static str {
    let begins = |prefix: &str| model.starts_with(prefix);
    if begins("custom/") || model == CUSTOM {
        CUSTOM
    } else if begins("cursor/") {
        "cursor"
    } else if begins("openai/") || begins("vercel/openai/") || (begins("neon/gpt-") && !begins("neon/gpt-oss-")) {
        "codex"
    } else if begins("opencode/") || begins("neon/") {
        "opencode"
    } else {
        "claude-code"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(harness: &str, model: &str, custom_runner: Option<Value>) -> Result<(String, String), Refusal> {
        let agent = AgentRequest { harness: Some(harness.into()), model: Some(model.into()), custom_runner };
        agent.checked().map(|agent| (agent.harness.unwrap_or_default(), agent.model.unwrap_or_default()))
    }

    #[test]
    fn an_agent_is_kept_as_it_was_asked_for() {
        for (harness, model, kept) in [
            ("codex", "openai/x", ("codex", "openai/x")),
            ("", "anthropic/opus", ("claude-code", "anthropic/opus")),
            ("", "neon/gpt-oss-1", ("opencode", "neon/gpt-oss-1")),
            ("custom", "", ("custom", "custom")),
            ("", "", ("", "")),
        ] {
            let (harness, model) = check(harness, model, None).expect("an agent");
            assert_eq!((harness.as_str(), model.as_str()), kept);
        }
        assert!(check("custom", "", Some(json!({"command": "x"}))).is_ok());
        assert!(check("custom", "", Some(json!({"args": []}))).is_err());
        assert!(check("codex", "", Some(json!({"command": "x"}))).is_err());
        assert!(check("a\nb", "", None).is_err());
    }
}
