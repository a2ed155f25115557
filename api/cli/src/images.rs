//! `icebox image …`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;

use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::access;
use super::args::Global;
use super::args_image::{ImageVerb, Import, Kind};
use super::build;
use super::client::{Client, JsonLines, Patience, read};
use super::error::Error;
use super::human;
use super::output::{Output, stream};
use super::portable::save;
use super::runtimes;
use super::table::Table;

/// The operator's socket in the run directory.
const SOCKET: &str = "operator.sock";
/// Digits of an id that a table shows.
const SHORT_ID: usize = 12;
/// Width of a bar.
const BAR_CELLS: usize = 30;

#[derive(Debug, Deserialize)]
struct Image {
    id: String,
    names: Vec<String>,
    size_bytes: u64,
    stored_at: i64,
    layers: u64,
    #[serde(default)]
    source: Option<String>,
    boxes: u64,
}

#[derive(Debug, Default, Deserialize)]
struct Removed {
    untagged: Vec<String>,
    removed: Vec<String>,
    bytes: u64,
}

/// A line of the answer to an import, a pull or a push.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Progress {
    Work {
        text: String,
    },
    Layer {
        layer: u64,
        layers: Option<u64>,
        done: u64,
        total: Option<u64>,
        known: bool,
    },
    Transfer {
        layer: u64,
        done: u64,
        total: Option<u64>,
        known: bool,
    },
    Image {
        image: Image,
    },
    Pushed {
        name: String,
        digest: String,
        changed: bool,
    },
    Done,
    Error {
        status: u16,
        error: String,
    },
    #[serde(other)]
    Other,
}

/// The client for images: the operator's socket of this machine, unless a server is named.
pub(crate) fn client(global: &Global) -> Result<Client, Error> {
    let socket = global.run_dir.join(SOCKET);
    if global.url.is_none() && global.key.is_none() && may_use(&socket) {
        return Client::of_operator(&socket);
    }
    Client::new(access::resolve(global)?)
}

fn may_use(socket: &Path) -> bool {
    rustix::fs::access(socket, rustix::fs::Access::WRITE_OK).is_ok()
}

pub(crate) async fn image(client: &Client, output: &Output, verb: ImageVerb) -> Result<(), Error> {
    match verb {
        ImageVerb::Build(args) => build::build(client, output, args).await,
        ImageVerb::Ls => list(client, output).await,
        ImageVerb::Runtimes => runtimes::list(client, output).await,
        ImageVerb::Show { image } => show(client, output, &image).await,
        ImageVerb::Import(import) => import_images(client, output, import).await,
        ImageVerb::Pull { name } => {
            let request = client.request(Method::POST, &["v1", "images", "pull"], Patience::Work);
            follow(client, output, request.query(&[("name", name)])).await
        }
        ImageVerb::Push { image, name } => {
            let request = client.request(Method::POST, &["v1", "images", &image, "push"], Patience::Work);
            let query: Vec<(&str, String)> = name.map(|name| ("name", name)).into_iter().collect();
            follow(client, output, request.query(&query)).await
        }
        ImageVerb::Rm { images } => {
            for image in images {
                let request = client.request(Method::DELETE, &["v1", "images", &image], Patience::Work);
                removed(output, client.json(request).await?)?;
            }
            Ok(())
        }
        ImageVerb::Prune { all } => {
            let request = client.request(Method::POST, &["v1", "images", "prune"], Patience::Work);
            removed(output, client.json(request.query(&[("all", all)])).await?)
        }
        ImageVerb::Tag { image, name } => {
            let request = client.request(Method::POST, &["v1", "images", &image, "tag"], Patience::Record);
            client.json(request.json(&json!({ "name": name }))).await.map(drop)
        }
        ImageVerb::Export { image, file } => export(client, output, &image, &file).await,
    }
}

async fn list(client: &Client, output: &Output) -> Result<(), Error> {
    let answer = client.get(&["v1", "images"], &[]).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let mut table = Table::new(&["NAME", "ID", ">SIZE", ">LAYERS", ">BOXES", ">AGE", "SOURCE"]);
    for image in read::<Vec<Image>>(answer)? {
        let names = if image.names.is_empty() { vec!["-".to_owned()] } else { image.names.clone() };
        for name in names {
            table.row([
                familiar(&name),
                short(&image.id),
                human::bytes(image.size_bytes),
                image.layers.to_string(),
                image.boxes.to_string(),
                human::age(Some(image.stored_at / 1000)),
                image.source.clone().unwrap_or_default(),
            ]);
        }
    }
    output.table(&table)
}

async fn show(client: &Client, output: &Output, image: &str) -> Result<(), Error> {
    // For people too: what is of interest is the configuration, which is JSON.
    output.json(&client.get(&["v1", "images", image], &[]).await?)
}

async fn import_images(client: &Client, output: &Output, import: Import) -> Result<(), Error> {
    let mut query: Vec<(&str, String)> = Vec::new();
    query.extend(import.name.map(|name| ("name", name)));
    query.extend(import.kind.map(|kind| {
        let kind = match kind {
            Kind::Images => "images",
            Kind::Rootfs => "rootfs",
        };
        ("kind", kind.to_owned())
    }));
    let request = client.request(Method::POST, &["v1", "images", "import"], Patience::Work);
    let request = if import.source == "-" {
        query.push(("file", "standard input".to_owned()));
        let input = ReaderStream::new(stream(std::io::stdin(), "standard input")?);
        request.body(reqwest::Body::wrap_stream(input))
    } else if import.source.starts_with("debootstrap:") {
        query.push(("source", import.source));
        request
    } else {
        let path = std::fs::canonicalize(&import.source).map_err(|cause| Error::io("find", &import.source, cause))?;
        let path = path.to_str().ok_or_else(|| Error::usage(format!("{} is not UTF-8", path.display())))?;
        query.push(("source", path.to_owned()));
        request
    };
    follow(client, output, request.query(&query)).await
}

/// Sends the request and shows the lines of its answer. The names and ids of stored images are the result.
pub(crate) async fn follow(client: &Client, output: &Output, request: RequestBuilder) -> Result<(), Error> {
    let mut lines = JsonLines::of(client, request).await?;
    let mut shown = Shown::new(!output.is_json() && std::io::stderr().is_terminal());
    while let Some(value) = lines.next().await? {
        if output.is_json() {
            output.json_line(&value)?;
        }
        match read::<Progress>(value)? {
            Progress::Done => {
                shown.end();
                return Ok(());
            }
            Progress::Error { status, error } => {
                shown.end();
                return Err(Error::Server { status, text: error, hint: None });
            }
            Progress::Image { image } if !output.is_json() => {
                shown.end();
                let name = image.names.first().map_or_else(|| image.id.clone(), |name| familiar(name));
                output.line(&human::plain(&name))?;
            }
            Progress::Pushed { name, digest, changed } if !output.is_json() => {
                shown.end();
                if changed {
                    output.remark("a layer could not be made again as it was: the image has another id there");
                }
                output.line(&format!("{}@{}", human::plain(&familiar(&name)), human::plain(&digest)))?;
            }
            progress => shown.show(&progress),
        }
    }
    shown.end();
    Err(Error::protocol("finish the work", "the answer ends before the work; the log of iceboxd has the reason"))
}

/// Progress on a terminal: one line that changes.
struct Shown {
    terminal: bool,
    /// Bytes that have gone over the network, and all of them, by layer.
    transfers: BTreeMap<u64, (u64, u64)>,
}

impl Shown {
    fn new(terminal: bool) -> Self {
        Self { terminal, transfers: BTreeMap::new() }
    }

    fn show(&mut self, progress: &Progress) {
        if !self.terminal {
            return;
        }
        let text = match progress {
            Progress::Work { text } => human::plain(text),
            Progress::Layer { layer, layers, done, total, known } => {
                let of = layers.map(|layers| format!("/{layers}")).unwrap_or_default();
                let bytes = match (known, total) {
                    (true, _) => "is here already".to_owned(),
                    (false, Some(total)) => {
                        let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(100);
                        format!("{} of {} ({percent} %)", human::bytes(*done), human::bytes(*total))
                    }
                    (false, None) => human::bytes(*done),
                };
                format!("layer {layer}{of}: {bytes}")
            }
            Progress::Transfer { known: true, .. } => return,
            Progress::Transfer { layer, done, total, .. } => {
                self.transfers.insert(*layer, (*done, total.unwrap_or(*done)));
                let (done, total) = self
                    .transfers
                    .values()
                    .fold((0_u64, 0_u64), |(done, total), layer| (done + layer.0, total + layer.1));
                format!("{} {} of {}", bar(done, total), human::bytes(done), human::bytes(total))
            }
            _ => return,
        };
        // A failed write to standard error cannot be reported.
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
    }

    fn end(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// A bar of a work of which this much is done.
fn bar(done: u64, total: u64) -> String {
    let filled = (u128::from(done) * BAR_CELLS as u128).checked_div(u128::from(total)).unwrap_or(BAR_CELLS as u128);
    let filled = usize::try_from(filled).unwrap_or(BAR_CELLS).min(BAR_CELLS);
    format!("[{}{}]", "=".repeat(filled), " ".repeat(BAR_CELLS - filled))
}

fn removed(output: &Output, answer: Value) -> Result<(), Error> {
    if output.is_json() {
        return output.json(&answer);
    }
    let removed: Removed = read(answer)?;
    for name in &removed.untagged {
        output.line(&human::plain(&familiar(name)))?;
    }
    for id in &removed.removed {
        output.line(&human::plain(id))?;
    }
    if removed.bytes > 0 {
        output.remark(&format!("{} are free", human::bytes(removed.bytes)));
    }
    Ok(())
}

async fn export(client: &Client, output: &Output, image: &str, file: &Path) -> Result<(), Error> {
    let request = client.request(Method::GET, &["v1", "images", image, "export"], Patience::Work);
    let answer = client.send(request).await?;
    save(output, answer, file).await
}

/// A name without the parts that are the default.
fn familiar(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name).to_owned()
}

fn short(id: &str) -> String {
    id.strip_prefix("sha256:").map_or_else(|| id.to_owned(), |hex| hex.chars().take(SHORT_ID).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_short_for_people() {
        assert_eq!(familiar("docker.io/library/debian:12"), "debian:12");
        assert_eq!(familiar("docker.io/team/app:1"), "team/app:1");
        assert_eq!(familiar("r.example.com/a:1"), "r.example.com/a:1");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("bookworm-12345678"), "bookworm-12345678");
    }

    #[test]
    fn bars_have_one_width() {
        assert_eq!(bar(0, 10), format!("[{}]", " ".repeat(30)));
        assert_eq!(bar(5, 10), format!("[{}{}]", "=".repeat(15), " ".repeat(15)));
        for (done, total) in [(10, 10), (11, 10), (0, 0), (u64::MAX, u64::MAX)] {
            assert_eq!(bar(done, total), format!("[{}]", "=".repeat(30)));
        }
    }

    #[test]
    fn lines_of_later_servers_are_no_error() {
        let read = |text: &str| serde_json::from_str::<Progress>(text).expect("a line");
        assert!(matches!(read(r#"{"event":"new-kind","x":1}"#), Progress::Other));
        assert!(matches!(read(r#"{"event":"layer","layer":1,"done":5,"known":false}"#), Progress::Layer { .. }));
        assert!(matches!(read(r#"{"event":"error","status":400,"error":"x"}"#), Progress::Error { status: 400, .. }));
    }
}
