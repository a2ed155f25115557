//! Code as a command: its interpreter, and how the program text reaches it.
//!
//! The program text is sent through standard input, not as an argument: this avoids the limit of 128 KiB and quoting,
//! and `ps` does not show it. The program itself has an empty standard input.

use bytes::Bytes;

use super::command::{Command, clock_timeout, resolve_folder};
use crate::domain::{Code, Language};
use crate::refusal::Refusal;

/// Longest program text.
const CODE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// TypeScript needs a runner that the base image need not have: the first one found. Runners need a file, which is put
/// beside the project if possible, so that its imports are found.
const TYPESCRIPT: &str = r#"
file=$(mktemp "./.code-XXXXXXXX.ts" 2>/dev/null || mktemp "/tmp/code-XXXXXXXX.ts") || exit 1
trap 'rm -f "$file"' EXIT
cat > "$file"
if node --experimental-strip-types -e '' 2>/dev/null; then
  node --no-warnings --experimental-strip-types "$file" </dev/null
elif command -v tsx >/dev/null; then
  tsx "$file" </dev/null
elif command -v deno >/dev/null; then
  deno run --quiet --allow-all "$file" </dev/null
elif command -v bun >/dev/null; then
  bun run "$file" </dev/null
else
  echo "this box has no TypeScript runner: install node 22.6 or newer, tsx, deno or bun" >&2
  exit 127
fi
"#;

/// The command that runs this code.
pub fn code_command(code: Code) -> Result<Command, Refusal> {
    if code.text.len() > CODE_BYTES_MAX {
        return Err(Refusal::TooLarge(format!("code must have at most {CODE_BYTES_MAX} bytes")));
    }
    let argv: &[&str] = match code.language {
        Language::Python => &["python3", "-"],
        Language::Js if is_module(&code.text) => &["node", "--input-type=module", "-"],
        Language::Js => &["node", "-"],
        Language::Ts => &["sh", "-c", TYPESCRIPT],
    };
    let name = match code.language {
        Language::Python => "python",
        Language::Js => "js",
        Language::Ts => "ts",
    };
    Ok(Command {
        argv: argv.iter().map(|part| (*part).to_owned()).collect(),
        cwd: resolve_folder(code.folder.as_deref())?,
        timeout_ms: clock_timeout(code.timeout_ms)?,
        prompt: super::command::prompt_of(&[name.to_owned(), code.text.clone()]),
        stdin: Some(Bytes::from(code.text)),
        ..Command::default()
    })
}

/// True if JavaScript is written as a module. Old versions of node cannot detect it: a line that begins with a static
/// `import` or an `export` occurs only in modules.
fn is_module(code: &str) -> bool {
    code.lines().any(|line| {
        let line = line.trim_start();
        let import = line.strip_prefix("import").is_some_and(|rest| rest.starts_with([' ', '\t', '{', '*', '"', '\'']));
        let export = line.strip_prefix("export").is_some_and(|rest| rest.starts_with([' ', '\t', '{', '*']));
        import || export
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str, language: Language) -> Code {
        Code { text: text.into(), language, timeout_ms: None, folder: None }
    }

    #[test]
    fn modules_are_told_from_scripts() {
        for module in [
            "import fs from 'fs'",
            "  import {a} from 'b'",
            "x\nexport default 1",
            "import 'x'",
            "import*as a from 'b'",
        ] {
            assert!(is_module(module), "{module}");
        }
        for script in ["const fs = require('fs')", "import('x')", "important()", "exports.x = 1", "// import x"] {
            assert!(!is_module(script), "{script}");
        }
    }

    #[test]
    fn code_goes_through_standard_input() {
        let command = code_command(code("print(1)", Language::Python)).expect("a command");
        assert_eq!(command.argv, ["python3", "-"]);
        assert_eq!(command.stdin.as_deref(), Some(b"print(1)".as_slice()));
        assert_eq!(command.prompt, "python print(1)");
        assert!(code_command(code(&"x".repeat(CODE_BYTES_MAX + 1), Language::Js)).is_err());
    }
}
