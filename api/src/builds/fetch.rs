//! ADD of a URL: a box with the network policy of the build, and nothing else, whose network fetches the file.
//!
//! Nothing is fetched from the daemon's own network but through the forward proxy of that box, as a RUN would. A URL with
//! a checksum is fetched once: what it was is noted beside the cache of steps, and the file is fetched again only if
//! its step must be made again.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;

use icebox_boxfile::{Fetched, Network, digest_text};
use jiff::fmt::rfc2822;
use sha2::{Digest as _, Sha256};

use super::cache::told;
use super::executor::Work;
use super::record::Record;
use super::urls::check_form;
use crate::boxes::{Entry, WorkKind};
use crate::refusal::Refusal;

/// Largest file.
const BYTES_MAX: u64 = 4 << 30;

impl Work {
    /// What is at a URL. It is fetched, unless it is known by its checksum.
    pub(super) fn look_at(&mut self, url: &str, checksum: Option<&str>) -> Result<Fetched, String> {
        if let Some(checksum) = checksum {
            check_form(checksum)?;
            if let Some(known) = self.cache.url(url, checksum).map_err(|error| told(&error))? {
                self.urls.by_digest.insert(known.digest.clone(), url.to_owned());
                return Ok(known);
            }
        }
        let fetched = self.download(url, checksum)?;
        if checksum.is_some() {
            self.cache.note_url(url, &fetched).map_err(|error| told(&error))?;
        }
        Ok(fetched)
    }

    /// The file with this digest, which is fetched if it is only known yet.
    pub(super) fn file_of(&mut self, fetched: &Fetched) -> Result<File, String> {
        if !self.urls.files.contains_key(&fetched.digest) {
            let url = self.urls.by_digest.get(&fetched.digest).cloned();
            self.download(&url.ok_or("it was not fetched")?, Some(&fetched.digest))?;
        }
        File::open(&self.urls.files[&fetched.digest]).map_err(|error| told(&error))
    }

    fn download(&mut self, url: &str, checksum: Option<&str>) -> Result<Fetched, String> {
        self.report.send(Record::Note(format!("fetching {url}")));
        let path = self.temp.path().join(format!("url-{}", self.urls.files.len()));
        let mut file = File::create(&path).map_err(|error| told(&error))?;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        let mut piece = |bytes: &[u8]| {
            size += bytes.len() as u64;
            if size > BYTES_MAX {
                return Err(io::Error::other(format!("the file has more than {BYTES_MAX} bytes")));
            }
            hash.update(bytes);
            file.write_all(bytes)
        };
        let modified = self.fetch_in_box(url, &mut piece)?;
        let digest = digest_text(&hash.finalize());
        if let Some(wanted) = checksum
            && !digest.eq_ignore_ascii_case(wanted)
        {
            return Err(format!("the file is {digest}, and not {wanted}"));
        }
        // Without a date it is as old as can be, so that the layer is the same each time.
        let mtime = modified.and_then(|text| rfc2822::parse(&text).ok()).map_or(0, |date| date.timestamp().as_second());
        self.urls.files.insert(digest.clone(), path);
        self.urls.by_digest.insert(digest.clone(), url.to_owned());
        Ok(Fetched { digest, size, mtime })
    }

    fn fetch_in_box(
        &mut self,
        url: &str,
        piece: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
    ) -> Result<Option<String>, String> {
        let refused = |why: Refusal| why.chain();
        let entry = self.fetching_box()?;
        let limit = self.order.step_limit;
        self.means.runtime.clone().block_on(async {
            let _awake = self.means.lifecycle.ensure_awake(&entry, WorkKind::Run).await.map_err(refused)?;
            // Both end with this function, before the box does.
            let proxy = match self.order.host_proxy {
                true => Some(self.means.boxes.forward(&entry).await.map_err(refused)?),
                false => None,
            };
            let fetcher = self.means.boxes.fetcher(&entry, proxy.as_ref()).await.map_err(refused)?;
            tokio::select! {
                facts = fetcher.get(url, piece) => facts.map(|facts| facts.modified),
                () = tokio::time::sleep(limit) => Err(format!("it took more than {} s", limit.as_secs())),
                () = self.report.closed() => Err("it was cancelled: the client has gone".to_owned()),
            }
        })
    }

    /// A box that has the network of the build and no files.
    fn fetching_box(&mut self) -> Result<Arc<Entry>, String> {
        if let Some(entry) = &self.urls.in_box {
            return Ok(Arc::clone(entry));
        }
        let lowest = self.lowest("/").map_err(|error| told(&error))?;
        let wanted = self.new_box(Network::Default, vec![lowest]);
        let boxes = self.means.boxes.clone();
        let created = crate::boxes::to_the_end(async move { boxes.create(wanted).await });
        let entry = self.means.runtime.block_on(created).map_err(|why| format!("there is no box: {}", why.chain()))?;
        self.urls.in_box = Some(Arc::clone(&entry));
        Ok(entry)
    }

    /// Ends the box in whose network files were fetched.
    pub(super) fn end_fetching(&mut self) {
        if let Some(entry) = self.urls.in_box.take() {
            self.means.runtime.block_on(self.means.boxes.end_build_box(&entry));
        }
    }
}
