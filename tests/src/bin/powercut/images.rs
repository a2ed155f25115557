//! Images: imported, built and removed while boxes work, and looked at after the cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use icebox_tests::Daemon;
use icebox_tests::api::encode;
use icebox_tests::daemon::binary;
use icebox_tests::wait::try_until;
use serde_json::Value;

use crate::check::Look;
use crate::load::Random;
use crate::model::{Known, Op, Text};
use crate::report;

/// Images of this round that are kept at once.
const IMAGES_MAX: usize = 3;
/// The file that an image has.
pub(crate) const FILE: &str = "content";
/// Directories of the images' store that hold unfinished work begin so.
const UNFINISHED: &str = ".tmp-";
/// How long one may stay that is being made.
const UNFINISHED_DEADLINE: Duration = Duration::from_secs(60);

/// The work of one round.
pub(crate) struct Work {
    run_dir: PathBuf,
    scratch: PathBuf,
    round: u32,
    end: Instant,
}

impl Work {
    pub(crate) fn new(daemon: &Daemon, round: u32, end: Instant) -> Self {
        let scratch = std::env::temp_dir().join(format!("icebox-powercut-{}", std::process::id()));
        Self { run_dir: daemon.run_dir().to_owned(), scratch, round, end }
    }

    /// Goes on until the power is off.
    pub(crate) fn come_and_go(self, mut random: Random) {
        let mut there = Vec::new();
        for count in 0_u64.. {
            if Instant::now() >= self.end {
                return;
            }
            let name = format!("localhost/made-{}-{count}:latest", self.round);
            let bytes = usize::try_from(random.below(400_000)).unwrap_or(0);
            let text = Text { tag: format!("{}/{count} image ", self.round), bytes };
            self.make(&name, text, random.below(2) == 0);
            there.push(name);
            if there.len() > IMAGES_MAX {
                self.remove(there.remove(0));
            }
        }
    }

    /// Imports or builds an image with this content.
    pub(crate) fn make(&self, name: &str, text: Text, imported: bool) {
        self.write_content(&text.whole());
        let op = Op::Image { name: name.to_owned(), text };
        report::begun(&op);
        if imported {
            self.import(name)
        } else {
            self.build(name)
        }
        report::done(&op);
    }

    /// Removes an image.
    pub(crate) fn remove(&self, name: String) {
        let op = Op::DropImage { name: name.clone() };
        report::begun(&op);
        self.icebox(&["image", "rm", &name]);
        report::done(&op);
    }

    fn write_content(&self, content: &str) {
        fs::create_dir_all(&self.scratch).expect("a directory");
        fs::write(self.scratch.join(FILE), content).expect("written");
        fs::write(self.scratch.join("Boxfile"), format!("FROM scratch\nCOPY {FILE} /{FILE}\n")).expect("written");
    }

    fn import(&self, name: &str) {
        let archive = self.scratch.with_extension("tar");
        let packed = Command::new("tar").arg("-C").arg(&self.scratch).arg("-cf").arg(&archive).arg(FILE).status();
        assert!(packed.expect("run tar").success());
        self.icebox(&["image", "import", &archive.display().to_string(), "--name", name, "--kind", "rootfs"]);
    }

    fn build(&self, name: &str) {
        self.icebox(&["image", "build", "--tag", name, &self.scratch.display().to_string()]);
    }

    /// As the operator.
    fn icebox(&self, words: &[&str]) {
        let mut command = Command::new(binary("icebox"));
        command.env_remove("UPSTASH_BOX_BASE_URL").env_remove("UPSTASH_BOX_API_KEY");
        let output = command.arg("--run-dir").arg(&self.run_dir).args(words).output().expect("run icebox");
        assert!(output.status.success(), "icebox {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Compares the images with what was acknowledged.
pub(crate) fn look(daemon: &Daemon, known: &Known, look: &mut Look) {
    let (api, store) = (daemon.api(), daemon.images());
    for (name, facts) in &known.images {
        let answer = api.get(&format!("/v1/images/{}", encode(name)));
        let here = answer.status == 200;
        look.fact(matches!(answer.status, 200 | 404), || format!("image {name}: {} {}", answer.status, answer.text()));
        look.fact(facts.present.is_none_or(|present| present == here), || {
            format!("image {name} must be there: {:?}, and is: {here}", facts.present)
        });
        if here {
            let whole = content(&store, &answer.json()).is_some_and(|found| found == facts.text.whole());
            look.fact(whole, || format!("image {name} has not the content that it was given"));
        }
        if facts.present.is_none() {
            let name = name.clone();
            report::done(&if here { Op::Image { name, text: facts.text.clone() } } else { Op::DropImage { name } });
        }
    }
    // What is being made now (`iceboxd` prepares its base image after its start) is soon finished.
    let mut left = Vec::new();
    let settled = try_until(UNFINISHED_DEADLINE, || {
        left = unfinished(&store);
        left.is_empty()
    });
    look.fact(settled, || format!("{left:?} are left"));
}

/// Unfinished directories in the store.
fn unfinished(store: &Path) -> Vec<PathBuf> {
    let places = [store.to_owned(), store.join("layers"), store.join("manifests")];
    let entries = places.iter().flat_map(fs::read_dir).flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED))
        .map(|entry| entry.path())
        .collect()
}

/// The file in the only layer of an image.
fn content(store: &Path, image: &Value) -> Option<String> {
    let diff_id = image["diff_ids"].as_array()?.first()?.as_str()?;
    let layer = store.join("layers").join(diff_id.strip_prefix("sha256:")?);
    fs::read_to_string(layer.join("diff").join(FILE)).ok()
}
