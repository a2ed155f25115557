//! A Boxfile as a list of stages.

use crate::error::{Error, Fault};
use crate::instruction::{ArgText, Instruction, Kind};
use crate::lines;

/// A Boxfile that was read. Variables are not replaced yet.
#[derive(Debug, Clone)]
pub struct Boxfile {
    pub(crate) file: String,
    pub(crate) escape: char,
    /// ARG before the first FROM: line, and the pairs.
    pub(crate) global_args: Vec<(usize, Vec<ArgText>)>,
    pub(crate) stages: Vec<StageText>,
}

/// A stage as it is written.
#[derive(Debug, Clone)]
pub(crate) struct StageText {
    pub(crate) line: usize,
    pub(crate) image: String,
    pub(crate) name: Option<String>,
    pub(crate) platform: Option<String>,
    pub(crate) instructions: Vec<Instruction>,
}

impl Boxfile {
    /// Reads a Boxfile. `file` is its name for errors.
    ///
    /// # Errors
    /// Its syntax is not that of a Dockerfile, or it has something that is not supported. The error names the line.
    pub fn read(file: &str, text: &str) -> Result<Self, Error> {
        let read = lines::read(file, text)?;
        let mut boxfile =
            Self { file: file.to_owned(), escape: read.escape, global_args: Vec::new(), stages: Vec::new() };
        for line in &read.lines {
            let instruction = Instruction::read(line, read.escape).map_err(|fault| fault.at(file, line.line))?;
            boxfile.take(instruction).map_err(|fault| fault.at(file, line.line))?;
        }
        if boxfile.stages.is_empty() {
            let instead = Some("write FROM IMAGE, or FROM scratch".to_owned());
            return Err(Error { file: file.to_owned(), line: None, what: "there is no FROM".to_owned(), instead });
        }
        Ok(boxfile)
    }

    fn take(&mut self, instruction: Instruction) -> Result<(), Fault> {
        match (instruction.kind, self.stages.last_mut()) {
            (Kind::From { image, name, platform }, _) => {
                if let Some(name) = &name
                    && let Some(first) = self.stages.iter().find(|stage| stage.name.as_ref() == Some(name))
                {
                    return Err(Fault::new(format!(
                        "the name '{name}' is that of the stage of line {} already",
                        first.line
                    )));
                }
                let line = instruction.line;
                self.stages.push(StageText { line, image, name, platform, instructions: Vec::new() });
            }
            (Kind::Arg(pairs), None) => self.global_args.push((instruction.line, pairs)),
            (_, None) => {
                return Err(Fault::instead("the first instruction is not FROM", "write FROM IMAGE before it"));
            }
            (kind, Some(stage)) => stage.instructions.push(Instruction { kind, ..instruction }),
        }
        Ok(())
    }

    /// The stage with a name, or with a number if it has no name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        let wanted = name.to_ascii_lowercase();
        self.stages
            .iter()
            .position(|stage| stage.name.as_deref() == Some(&wanted))
            .or_else(|| wanted.parse().ok().filter(|number| *number < self.stages.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_is_refused_with_its_line_and_an_alternative() {
        for (text, line, what, instead) in [
            ("RUN x", Some(1), "not FROM", "FROM IMAGE"),
            ("ARG A", None, "no FROM", "FROM scratch"),
            ("FROM a\nFORM b", Some(2), "'FORM'", ""),
            ("FROM a\nCOPPY b c", Some(2), "'COPPY'", "COPY"),
            ("FROM a b", Some(1), "takes an image", "AS NAME"),
            ("FROM a AS 1x", Some(1), "'1x'", "begins with a letter"),
            ("FROM a AS x\nFROM b AS X", Some(2), "'x'", ""),
            ("FROM a\nCOPY x", Some(2), "destination", "COPY SOURCE DEST"),
            ("FROM a\nCOPY --foo=1 x y", Some(2), "--foo", "remove it"),
            ("FROM a\nADD --keep-git-dir x y", Some(2), "--keep-git-dir", "git clone"),
            ("FROM a\nCOPY --checksum=x y z", Some(2), "--checksum", "ADD --checksum"),
            ("FROM a\nCOPY --chown x y", Some(2), "--chown", "--chown=VALUE"),
            ("FROM a\nRUN --mount=type=bind,target=/x y", Some(2), "type=bind", "COPY"),
            ("FROM a\nRUN --mount=type=secret,id=x y", Some(2), "type=secret", "attach_headers"),
            ("FROM a\nRUN --network=host y", Some(2), "--network=host", "--network=none"),
            ("FROM a\nRUN --security=insecure y", Some(2), "--security=insecure", "remove it"),
            ("FROM a\nRUN --device=x y", Some(2), "--device", "no devices"),
            ("FROM a\n\nRUN", Some(3), "no command", "RUN COMMAND"),
            ("FROM a\nSHELL bash", Some(2), "JSON", "/bin/bash"),
            ("FROM a\nRUN [\"a\", 1]", Some(2), "not a string", "quotes"),
            ("FROM a\nENV x", Some(2), "no value", "NAME=VALUE"),
            ("FROM a\nENV x=1 y", Some(2), "'y'", "y=VALUE"),
            ("FROM a\nONBUILD FROM b", Some(2), "ONBUILD FROM", ""),
            ("FROM a\nONBUILD ONBUILD RUN b", Some(2), "ONBUILD ONBUILD", ""),
            ("FROM a\nHEALTHCHECK x", Some(2), "HEALTHCHECK x", "HEALTHCHECK CMD"),
            ("FROM a\nHEALTHCHECK --interval=x CMD y", Some(2), "--interval=x", "30s"),
            ("FROM a\nVOLUME", Some(2), "no path", "/data"),
            ("FROM a\nARG =x", Some(2), "no name", "ARG NAME"),
            ("FROM a\nCOPY x <<E\nE\n", Some(2), "here-document", ""),
        ] {
            let error = Boxfile::read("Boxfile", text).expect_err(text);
            assert_eq!(error.line, line, "{error}");
            assert!(error.what.contains(what), "{text:?}: {error}");
            assert!(error.instead.as_deref().unwrap_or_default().contains(instead), "{text:?}: {error}");
        }
    }

    #[test]
    fn stages_are_found_by_name_and_number() {
        let boxfile = Boxfile::read("F", "ARG A=1\nFROM a AS One\nRUN x\nFROM b\nfrom c as three").expect("stages");
        assert_eq!(boxfile.global_args.len(), 1);
        for (name, wanted) in
            [("one", Some(0)), ("ONE", Some(0)), ("1", Some(1)), ("three", Some(2)), ("3", None), ("x", None)]
        {
            assert_eq!(boxfile.find(name), wanted, "{name}");
        }
    }
}
