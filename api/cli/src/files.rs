//! The file operations of the server, one function each.

use std::os::unix::ffi::OsStrExt as _;

use reqwest::{Body, Method, Response};
use serde_json::json;

use super::client::{Client, Patience, read};
use super::error::Error;
use super::names;
use super::types::{ExecResult, FileEntry, FilePage, FileStat};

/// Paths given to one chmod: far below the kernel's limit for arguments.
const CHMOD_PATHS_MAX: usize = 100;

pub(crate) struct Files<'a> {
    client: &'a Client,
    id: String,
}

impl<'a> Files<'a> {
    /// The files of the box with this id or name.
    pub(crate) async fn of(client: &'a Client, name: &str) -> Result<Self, Error> {
        Ok(Self { client, id: client.find(name).await?.id })
    }

    fn request(&self, method: Method, verb: &str) -> reqwest::RequestBuilder {
        self.client.request(method, &["v2", "box", &self.id, "files", verb], Patience::Work)
    }

    /// What a path is, if it exists. With `follow`, what a symbolic link points to.
    pub(crate) async fn stat(&self, path: &str, follow: bool) -> Result<Option<FileStat>, Error> {
        let mut query = vec![("path", path)];
        if follow {
            query.push(("follow", "true"));
        }
        match self.client.json(self.request(Method::GET, "stat").query(&query)).await {
            Ok(answer) => read(answer).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The entries of a directory.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<FileEntry>, Error> {
        let answer = self.client.json(self.request(Method::GET, "list").query(&[("folder", path)])).await?;
        Ok(read::<FilePage>(answer)?.files)
    }

    /// Makes a directory and its parents.
    pub(crate) async fn make_directory(&self, path: &str) -> Result<(), Error> {
        let body = json!({ "path": path, "parents": true });
        self.client.send(self.request(Method::POST, "mkdir").json(&body)).await.map(drop)
    }

    /// Writes a file; its parents are made. `length` is what the body will hold, if that is known.
    pub(crate) async fn upload(&self, path: &str, body: Body, length: Option<u64>) -> Result<(), Error> {
        let request = self.client.request(Method::PUT, &["v1", "boxes", &self.id, "files"], Patience::Work);
        let mut request = request.query(&[("path", path)]).header("content-type", "application/octet-stream");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        self.client.send(request.body(body)).await.map(drop)
    }

    /// Begins to read a file.
    pub(crate) async fn download(&self, path: &str) -> Result<Response, Error> {
        self.client.send(self.request(Method::GET, "download").query(&[("folder", path)])).await
    }

    /// Makes files executable. File modes are no part of the file operations, so a command in the box does it.
    pub(crate) async fn make_executable(&self, paths: &[String]) -> Result<(), Error> {
        let (odd, plain): (Vec<&str>, Vec<&str>) = paths.iter().map(String::as_str).partition(|p| names::is_escaped(p));
        for chunk in plain.chunks(CHMOD_PATHS_MAX) {
            self.run(&[&["chmod", "+x", "--"], chunk].concat()).await?;
        }
        // An argument of a command is UTF-8, so printf writes these paths.
        for path in odd {
            let octal: String = names::to_name(path).as_bytes().iter().map(|byte| format!("\\0{byte:03o}")).collect();
            self.run(&["sh", "-c", "printf %b \"$1\" | xargs -0 chmod +x --", "sh", &octal]).await?;
        }
        Ok(())
    }

    async fn run(&self, argv: &[&str]) -> Result<(), Error> {
        let request = self.client.request(Method::POST, &["v2", "box", &self.id, "exec"], Patience::Work);
        let result: ExecResult = read(self.client.json(request.json(&json!({ "command": argv }))).await?)?;
        if result.exit_code != Some(0) {
            return Err(Error::protocol("make the copies executable", result.error.trim().to_owned()));
        }
        Ok(())
    }
}
