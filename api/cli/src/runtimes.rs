//! `icebox image runtimes`, and what is said before a box has its runtime built.

use serde::Deserialize;

use super::client::{Client, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;

/// Characters of a step or an error that a table shows.
const TEXT_WIDTH: usize = 60;

#[derive(Debug, Deserialize)]
struct Runtime {
    name: String,
    state: String,
    image: String,
    #[serde(default)]
    size_bytes: Option<u64>,
    #[serde(default)]
    fetches_mb: Option<u64>,
    #[serde(default)]
    stores_mb: Option<u64>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    seconds: Option<u64>,
}

impl Runtime {
    /// What a build costs, as far as it is known.
    fn cost(&self) -> Option<String> {
        let (fetched, stored) = (self.fetches_mb?, self.stores_mb?);
        Some(format!("about {fetched} MB are fetched, the image takes about {stored} MB"))
    }

    /// What a box gets, in words.
    fn words(&self) -> String {
        match self.state.as_str() {
            "ready" => "ready".to_owned(),
            "outdated" => format!("outdated; `icebox image build --runtime {}`", self.name),
            "base" => format!("the base image's; `icebox image build --runtime {}` builds its own", self.name),
            "built_on_create" => "is built when a box asks for it".to_owned(),
            "building" => format!("is being built for {} s", self.seconds.unwrap_or_default()),
            "missing" => "missing".to_owned(),
            other => human::plain(other),
        }
    }

    /// What is said before a box that asks for it is created; none if nothing is built.
    fn announcement(&self) -> Option<String> {
        let cost = self.cost().map(|cost| format!(": {cost}")).unwrap_or_default();
        match self.state.as_str() {
            "built_on_create" => Some(format!("the runtime {} is built first, once{cost}", human::plain(&self.name))),
            "building" => Some(format!("the runtime {} {}", human::plain(&self.name), self.words())),
            _ => None,
        }
    }
}

pub(crate) async fn list(client: &Client, output: &Output) -> Result<(), Error> {
    let answer = client.get(&["v1", "runtimes"], &[]).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let mut table = Table::new(&["NAME", ">SIZE", "STATE", "IMAGE"]);
    for runtime in read::<Vec<Runtime>>(answer)? {
        let size = match (runtime.size_bytes, runtime.stores_mb) {
            (Some(bytes), _) => human::bytes(bytes),
            (None, Some(megabytes)) => format!("+{megabytes} MB"),
            (None, None) => String::new(),
        };
        let text =
            runtime.text.as_deref().map(|text| format!(": {}", human::one_line(text, TEXT_WIDTH))).unwrap_or_default();
        let words = format!("{}{text}", runtime.words());
        table.row([human::plain(&runtime.name), size, words, human::plain(&runtime.image)]);
    }
    output.table(&table)
}

/// Says that a runtime is built before the box, and what that costs. The creation itself reports what fails.
pub(crate) async fn announce(client: &Client, output: &Output, name: &str) {
    let Ok(answer) = client.get(&["v1", "runtimes"], &[]).await else { return };
    let Ok(runtimes) = read::<Vec<Runtime>>(answer) else { return };
    if let Some(text) = runtimes.iter().find(|runtime| runtime.name == name).and_then(Runtime::announcement) {
        output.remark(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_announced_with_its_cost() {
        let said = |state: &str, rest: &str| {
            let text = format!(r#"{{"name":"rust","state":"{state}","image":"i"{rest}}}"#);
            serde_json::from_str::<Runtime>(&text).expect("a runtime").announcement()
        };
        let cost = r#","fetches_mb":250,"stores_mb":900"#;
        let text = "the runtime rust is built first, once: about 250 MB are fetched, the image takes about 900 MB";
        assert_eq!(said("built_on_create", cost).as_deref(), Some(text));
        assert_eq!(said("built_on_create", "").as_deref(), Some("the runtime rust is built first, once"));
        assert_eq!(said("building", r#","seconds":3"#).as_deref(), Some("the runtime rust is being built for 3 s"));
        assert_eq!((said("ready", cost), said("base", cost)), (None, None));
    }
}
