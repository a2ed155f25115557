//! The table.
//!
//! A Boxfile begins with `=== NAME [OPTIONS]`, the options are those of the command line. After it may stand
//! `--- buildah REASON` with an equivalent that buildah can read, and `--- differs` with a line for each difference:
//! what differs (a path, or a key of the configuration), the beginning of what Icebox has, and why it is right, with ` | `
//! between them. Lines `# ignore: PATTERN` at the beginning are those of `.dockerignore`.

use std::collections::BTreeMap;

const FILES: [&str; 5] = [
    include_str!("cases/stages.txt"),
    include_str!("cases/variables.txt"),
    include_str!("cases/run.txt"),
    include_str!("cases/copy.txt"),
    include_str!("cases/config.txt"),
];

/// A Boxfile.
#[derive(Debug, Default)]
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: String,
    /// Options of the command line.
    pub(crate) options: Vec<String>,
    /// The Boxfile.
    pub(crate) text: String,
    /// What buildah gets in its place.
    pub(crate) for_buildah: Option<String>,
    /// Patterns of what is no part of the context.
    pub(crate) ignore: Vec<String>,
    /// What differs: what Icebox has.
    pub(crate) differs: BTreeMap<String, String>,
}

/// Where a line belongs.
enum Part {
    Ours,
    Buildah,
    Differs,
}

/// All Boxfiles of the table.
pub(crate) fn all() -> Vec<Case> {
    FILES.iter().flat_map(|file| read(file)).collect()
}

fn read(file: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut part = Part::Ours;
    for line in file.lines() {
        if let Some(head) = line.strip_prefix("=== ") {
            let mut words = head.split_whitespace().map(str::to_owned);
            let name = words.next().expect("a name");
            cases.push(Case { name, options: words.collect(), ..Case::default() });
            part = Part::Ours;
            continue;
        }
        let case = cases.last_mut().expect("a name comes first");
        if let Some(reason) = line.strip_prefix("--- buildah") {
            assert!(reason.len() > 10, "{}: there is no reason", case.name);
            (part, case.for_buildah) = (Part::Buildah, Some(String::new()));
        } else if line == "--- differs" {
            part = Part::Differs;
        } else {
            add(case, &part, line);
        }
    }
    cases
}

fn add(case: &mut Case, part: &Part, line: &str) {
    match part {
        Part::Ours => match line.strip_prefix("# ignore: ") {
            Some(pattern) if case.text.is_empty() => case.ignore.push(pattern.to_owned()),
            _ => case.text.push_str(&format!("{line}\n")),
        },
        Part::Buildah => case.for_buildah.get_or_insert_default().push_str(&format!("{line}\n")),
        Part::Differs if line.is_empty() => {}
        Part::Differs => match line.splitn(3, " | ").collect::<Vec<_>>().as_slice() {
            [what, ours, reason] if !reason.is_empty() => {
                case.differs.insert((*what).to_owned(), (*ours).to_owned());
            }
            _ => panic!("{}: '{line}' has not three parts", case.name),
        },
    }
}
