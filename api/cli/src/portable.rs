//! Archives of boxes: export, import.

use std::path::Path;

use futures::StreamExt;
use reqwest::{Body, Method, Response};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::args_portable::PortableVerb;
use super::boxes::ready;
use super::client::{Client, Patience};
use super::error::{Error, STDOUT};
use super::human;
use super::output::{Output, stream};

/// Carries the verb out.
pub(crate) async fn portable(client: &Client, output: &Output, verb: PortableVerb) -> Result<(), Error> {
    match verb {
        PortableVerb::Export { name, file } => {
            let id = client.find(&name).await?.id;
            let request = client.request(Method::GET, &["v1", "boxes", &id, "export"], Patience::Work);
            save(output, client.send(request).await?, &file).await
        }
        PortableVerb::Import { file, name } => import(client, output, &file, name).await,
    }
}

async fn import(client: &Client, output: &Output, file: &Path, name: Option<String>) -> Result<(), Error> {
    let is_stdin = file == Path::new("-");
    let input = if is_stdin {
        stream(std::io::stdin(), "standard input")?
    } else {
        tokio::fs::File::open(file).await.map_err(|cause| Error::io("read", file.display(), cause))?
    };
    let request = client.request(Method::POST, &["v1", "boxes", "import"], Patience::Work);
    let request = match name {
        Some(name) => request.query(&[("name", name)]),
        None => request,
    };
    ready(client, output, request.body(Body::wrap_stream(ReaderStream::new(input)))).await
}

/// Writes an answer to a file, or to standard output. A file that is not whole is removed.
pub(crate) async fn save(output: &Output, answer: Response, file: &Path) -> Result<(), Error> {
    let is_stdout = file == Path::new("-");
    let (mut sink, name) = if is_stdout {
        (stream(std::io::stdout(), STDOUT)?, STDOUT.to_owned())
    } else {
        let made = tokio::fs::File::create(file).await.map_err(|cause| Error::io("write", file.display(), cause))?;
        (made, file.display().to_string())
    };
    let written = receive(answer, &mut sink, &name).await;
    if written.is_err() && !is_stdout && sink.metadata().await.is_ok_and(|facts| facts.is_file()) {
        // The error tells what matters.
        let _ = tokio::fs::remove_file(file).await;
    }
    output.remark(&format!("{name}: {}", human::bytes(written?)));
    Ok(())
}

async fn receive(answer: Response, sink: &mut tokio::fs::File, name: &str) -> Result<u64, Error> {
    let url = answer.url().clone();
    let mut pieces = answer.bytes_stream();
    let mut written = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|cause| Error::transport("finish the export from", &url, cause.without_url()))?;
        written += piece.len() as u64;
        sink.write_all(&piece).await.map_err(|cause| Error::io("write", name, cause))?;
    }
    sink.flush().await.map_err(|cause| Error::io("write", name, cause))?;
    Ok(written)
}
