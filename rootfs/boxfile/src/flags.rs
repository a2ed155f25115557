//! The `--name=value` flags of an instruction.

use crate::error::Fault;

/// Flags that are taken one after the other; what is left at the end is refused.
pub(crate) struct Flags {
    keyword: String,
    left: Vec<(String, Option<String>)>,
}

impl Flags {
    pub(crate) fn new(keyword: &str, flags: &[String]) -> Result<Self, Fault> {
        let split = |flag: &String| {
            let flag = flag.trim_start_matches("--");
            match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (flag.to_owned(), None),
            }
        };
        Ok(Self { keyword: keyword.to_owned(), left: flags.iter().map(split).collect() })
    }

    fn values(&mut self, name: &str) -> Vec<Option<String>> {
        let (taken, left) = std::mem::take(&mut self.left).into_iter().partition(|(known, _)| known == name);
        self.left = left;
        let taken: Vec<(String, Option<String>)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// All values of a flag that may be there many times.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        self.values(name).into_iter().map(Option::unwrap_or_default).collect()
    }

    fn single(&mut self, name: &str) -> Result<Option<Option<String>>, Fault> {
        let mut values = self.values(name);
        let value = values.pop();
        if values.is_empty() { Ok(value) } else { Err(Fault::new(format!("{} --{name} is there twice", self.keyword))) }
    }

    /// The value of a flag.
    pub(crate) fn take(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.single(name)? {
            Some(None) => {
                let keyword = &self.keyword;
                Err(Fault::instead(
                    format!("{keyword} --{name} has no value"),
                    format!("write {keyword} --{name}=VALUE"),
                ))
            }
            value => Ok(value.flatten()),
        }
    }

    /// A flag that is on or off.
    pub(crate) fn switch(&mut self, name: &str) -> Result<Option<bool>, Fault> {
        match self.single(name)?.map(|value| value.unwrap_or_else(|| "true".to_owned())).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                let what = format!("{} --{name}={other} is neither true nor false", self.keyword);
                Err(Fault::instead(what, format!("write --{name}")))
            }
        }
    }

    /// Refuses a flag with a reason of its own.
    pub(crate) fn refuse(&mut self, name: &str, instead: &str) -> Result<(), Fault> {
        if self.left.iter().any(|(known, _)| known == name) {
            return Err(Fault::instead(format!("{} --{name} is not supported", self.keyword), instead));
        }
        Ok(())
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => Err(Fault::instead(
                format!("{} has no flag --{name}", self.keyword),
                format!("remove it, or write {} -- if the arguments begin with --", self.keyword),
            )),
        }
    }
}
