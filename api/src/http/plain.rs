//! Parse errors of a body or a query in plain words: the field and the expected value, not the parser's text.

/// Describes an error in JSON.
pub(super) fn json_error(cause: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let inner = cause.inner();
    if inner.is_syntax() || inner.is_eof() {
        return "the body is not valid JSON".to_owned();
    }
    let text = inner.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    field_error(&cause.path().to_string(), message)
}

/// Describes an error in a query, from the framework's text.
pub(super) fn query_error(text: &str) -> String {
    let message = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(text);
    match message.split_once(": ") {
        Some((path, message)) if !path.contains([' ', '`']) => field_error(path, message),
        _ => field_error("", message),
    }
}

/// One field and the parser's message about it.
fn field_error(path: &str, message: &str) -> String {
    let field = if path.is_empty() || path == "." { "the body" } else { path };
    if let Some(name) = quoted_after(message, "missing field ") {
        return format!("{name} is missing");
    }
    if let Some(name) = quoted_after(message, "duplicate field ") {
        return format!("{name} is given twice");
    }
    if let Some(value) = quoted_after(message, "unknown variant ") {
        let choices = message.split_once("expected ").map_or("", |(_, choices)| choices);
        let choices = choices.trim_start_matches("one of ").replace('`', "");
        return format!("{field} must be one of {choices}; '{value}' is none of them");
    }
    match message {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            return format!("{field} must be a whole number of 0 or more");
        }
        "number too large to fit in target type" => return format!("{field} is too large"),
        "provided string was not `true` or `false`" => return format!("{field} must be true or false"),
        _ => {}
    }
    match message.rsplit_once("expected ") {
        Some((_, expected)) => format!("{field} must be {}", kind_of(expected)),
        None => format!("{field} is not valid"),
    }
}

fn quoted_after<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.split('`').nth(1)
}

/// The plain name of a Rust type.
fn kind_of(expected: &str) -> &'static str {
    match expected {
        "a sequence" => "a list",
        "a string" | "a borrowed string" => "a string",
        "a boolean" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of 0 or more",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        text if text == "a map" || text.starts_with("struct ") => "an object",
        text if text.contains("enum") || text.contains("variant") => "one of the known words",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_parser_become_field_and_expectation() {
        for (path, message, said) in [
            (".", "missing field `command`", "command is missing"),
            ("command", "invalid type: string \"ls\", expected a sequence", "command must be a list"),
            ("command[0]", "invalid type: integer `1`, expected a string", "command[0] must be a string"),
            ("folder", "invalid type: integer `7`, expected a string", "folder must be a string"),
            (
                "idle_seconds",
                "invalid value: integer `-1`, expected u64",
                "idle_seconds must be a whole number of 0 or more",
            ),
            ("keep_alive", "invalid type: string \"x\", expected a boolean", "keep_alive must be true or false"),
            ("env_vars", "invalid type: sequence, expected a map", "env_vars must be an object"),
            (
                "size",
                "unknown variant `huge`, expected one of `small`, `medium`, `large`",
                "size must be one of small, medium, large; 'huge' is none of them",
            ),
        ] {
            assert_eq!(field_error(path, message), said);
        }
        let query = |text: &str| query_error(&format!("Failed to deserialize query string: {text}"));
        assert_eq!(query("missing field `path`"), "path is missing");
        assert_eq!(query("length: invalid digit found in string"), "length must be a whole number of 0 or more");
    }
}
