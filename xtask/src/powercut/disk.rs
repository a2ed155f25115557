//! A disk that forgets: the guest's data disk, served over NBD, with a write cache that a power cut empties.
//!
//! The host keeps what QEMU has written to a file even if QEMU is killed, whether the guest has flushed it or not; so a
//! killed guest shows what its own kernel lost, but not whether a flush was missing. This disk shows that: what was
//! written since the last flush is in memory only, and when the power is cut, chance decides for each such write whether
//! it has reached the medium, has not, or has in part, sector by sector (4 KiB). Later writes may survive earlier ones, as with
//! real disks. A flush makes everything durable whose write was answered before it.
//!
//! Owns the cache and the half of the protocol that QEMU speaks: one client, simple replies. Leaves out the medium's own
//! faults: what was flushed is never lost, and sectors are whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::chance::{End, Random};
use super::recording::Recording;
use crate::error::{Result, While};

/// What a power cut leaves whole: a physical sector of today's disks, and a block of ext4. With smaller ones a commit block of
/// ext4's journal can be half written, and then ext4 refuses the mount until it is repaired by hand (Linux 6.1, seed 794477).
const SECTOR_BYTES: u64 = 4096;
/// A full cache writes its oldest content to the medium, as real ones do at any time.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// QEMU cuts larger requests.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
const OPTION_BYTES_MAX: u32 = 64 << 10;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, and no zeroes after the old way of naming an export.
const HANDSHAKE_FLAGS: u16 = 0b11;
const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) | 1;
const INFO_EXPORT: u16 = 0;
/// There are flags, and flushes are understood. FUA is not offered, so that a durable write is a write and a flush.
const EXPORT_FLAGS: u16 = 0b101;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const EINVAL: u32 = 22;

/// What became of the writes that were in the cache at the cut.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) kept: u32,
    pub(super) lost: u32,
    pub(super) torn: u32,
}

/// The disk, as the host holds it.
#[derive(Debug, Clone)]
pub(super) struct Disk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The power has gone.
    gone: Condvar,
}

#[derive(Debug)]
struct State {
    medium: File,
    bytes: u64,
    /// Writes since the last flush, in their order.
    cache: Vec<(u64, Vec<u8>)>,
    cached_bytes: usize,
    /// When the power goes.
    end: Option<End>,
    off: bool,
    recording: Option<Recording>,
}

impl Disk {
    /// Serves the file on this socket, to the first who comes. Writes and flushes are put into the recording.
    pub(super) fn serve(medium: &Path, socket: &Path, recording: Option<Recording>) -> Result<Disk> {
        let file = OpenOptions::new().read(true).write(true).open(medium);
        let file = file.or_fail("open", medium.display().to_string())?;
        let bytes = file.metadata().or_fail("read", medium.display().to_string())?.len();
        let listener = UnixListener::bind(socket).or_fail("listen on", socket.display().to_string())?;
        let disk = Disk::new(file, bytes, recording);
        let served = disk.clone();
        thread::spawn(move || {
            // QEMU tells of a connection that breaks; an end without a goodbye is the usual one.
            let _ = listener.accept().and_then(|(stream, _)| served.talk(stream));
        });
        Ok(disk)
    }

    fn new(medium: File, bytes: u64, recording: Option<Recording>) -> Disk {
        let state = State { medium, bytes, cache: Vec::new(), cached_bytes: 0, end: None, off: false, recording };
        Disk(Arc::new(Shared { state: Mutex::new(state), gone: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes at this moment, and after `patience` at the latest. Nothing is answered from then on.
    pub(super) fn power_off(&self, end: End, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        state.end = Some(end);
        while !state.off {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.off = true;
                break;
            }
            state = self.0.gone.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Decides what the cut has left of the cache.
    pub(super) fn settle(&self, seed: u64) -> Result<Fate> {
        self.lock().settle(Random(seed)).or_fail("write", "the data disk")
    }

    fn talk(&self, mut stream: UnixStream) -> io::Result<()> {
        self.shake_hands(&mut stream)?;
        loop {
            let mut header = [0; 28];
            stream.read_exact(&mut header)?;
            let (magic, kind) = (number(&header[0..4]), number(&header[6..8]));
            let (handle, offset, length) = (number(&header[8..16]), number(&header[16..24]), number(&header[24..28]));
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            if magic != u64::from(REQUEST_MAGIC) || length > REQUEST_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut data = vec![0; if kind == u64::from(FLUSH) { 0 } else { length as usize }];
            if kind == u64::from(WRITE) {
                stream.read_exact(&mut data)?;
            }
            let kind = u16::try_from(kind).unwrap_or(u16::MAX);
            if kind == DISCONNECT {
                return self.lock().flush();
            }
            let error = match self.perform(kind, offset, &mut data)? {
                Some(error) => error,
                // Without power the disk neither answers nor hangs up.
                None => return hold(stream),
            };
            let mut reply = Vec::with_capacity(16 + data.len());
            reply.extend(REPLY_MAGIC.to_be_bytes());
            reply.extend(error.to_be_bytes());
            reply.extend(handle.to_be_bytes());
            if kind == READ && error == 0 {
                reply.extend(data);
            }
            stream.write_all(&reply)?;
        }
    }

    /// Does one request, unless the power has gone.
    fn perform(&self, kind: u16, offset: u64, data: &mut Vec<u8>) -> io::Result<Option<u32>> {
        let mut state = self.lock();
        if state.off {
            return Ok(None);
        }
        if kind != READ {
            match &mut state.end {
                Some(End { after: 0, at_flush }) if kind == FLUSH || !*at_flush => {
                    state.off = true;
                    // Half-way at this moment: it was received, and is not answered.
                    if kind == WRITE {
                        state.write(offset, std::mem::take(data))?;
                    }
                    self.0.gone.notify_all();
                    return Ok(None);
                }
                Some(End { after: 0, .. }) | None => {}
                Some(end) => end.after -= 1,
            }
        }
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > state.bytes) {
            return Ok(Some(EINVAL));
        }
        match kind {
            READ => state.read(offset, data)?,
            WRITE => state.write(offset, std::mem::take(data))?,
            FLUSH => state.flush()?,
            _ => return Ok(Some(EINVAL)),
        }
        Ok(Some(0))
    }

    fn shake_hands(&self, stream: &mut UnixStream) -> io::Result<()> {
        let bytes = self.lock().bytes;
        let mut hello = Vec::new();
        hello.extend(MAGIC.to_be_bytes());
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(HANDSHAKE_FLAGS.to_be_bytes());
        stream.write_all(&hello)?;
        stream.read_exact(&mut [0; 4])?;
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            let option = u32::try_from(number(&header[8..12])).unwrap_or(0);
            let length = u32::try_from(number(&header[12..16])).unwrap_or(u32::MAX);
            if length > OPTION_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // There is one export; the name is ignored.
            stream.read_exact(&mut vec![0; length as usize])?;
            let mut export = bytes.to_be_bytes().to_vec();
            export.extend(EXPORT_FLAGS.to_be_bytes());
            match option {
                OPTION_EXPORT_NAME => return stream.write_all(&export),
                OPTION_GO => {
                    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                    info.extend(export);
                    stream.write_all(&option_reply(option, REPLY_INFO, &info))?;
                    return stream.write_all(&option_reply(option, REPLY_ACK, &[]));
                }
                OPTION_ABORT => {
                    stream.write_all(&option_reply(option, REPLY_ACK, &[]))?;
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                _ => stream.write_all(&option_reply(option, REPLY_UNSUPPORTED, &[]))?,
            }
        }
    }
}

impl State {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.medium.read_exact_at(data, offset)?;
        let end = offset + data.len() as u64;
        for (at, written) in &self.cache {
            let (from, to) = (offset.max(*at), end.min(at + written.len() as u64));
            if from < to {
                let length = index(to - from);
                data[index(from - offset)..][..length].copy_from_slice(&written[index(from - at)..][..length]);
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: Vec<u8>) -> io::Result<()> {
        self.recording.as_ref().map_or(Ok(()), |recording| recording.write(offset, &data))?;
        self.cached_bytes += data.len();
        self.cache.push((offset, data));
        while self.cached_bytes > CACHE_BYTES_MAX {
            let (at, oldest) = self.cache.remove(0);
            self.cached_bytes -= oldest.len();
            self.medium.write_all_at(&oldest, at)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.recording.as_ref().map_or(Ok(()), Recording::flush)?;
        self.cached_bytes = 0;
        self.cache.drain(..).try_for_each(|(at, data)| self.medium.write_all_at(&data, at))
    }

    fn settle(&mut self, mut random: Random) -> io::Result<Fate> {
        let mut fate = Fate::default();
        for (at, data) in self.cache.drain(..) {
            match random.next() % 3 {
                0 => {
                    fate.kept += 1;
                    self.medium.write_all_at(&data, at)?;
                }
                1 => fate.lost += 1,
                _ => {
                    fate.torn += 1;
                    let (mut at, mut rest) = (at, data.as_slice());
                    while !rest.is_empty() {
                        let in_sector = index(SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len());
                        let (sector, after) = rest.split_at(in_sector);
                        if random.next().is_multiple_of(2) {
                            self.medium.write_all_at(sector, at)?;
                        }
                        (at, rest) = (at + in_sector as u64, after);
                    }
                }
            }
        }
        self.cached_bytes = 0;
        Ok(fate)
    }
}

/// A distance within one request.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    reply.extend(option.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    reply.extend(data);
    reply
}

/// Reads without a word until the other side is gone.
fn hold(mut stream: UnixStream) -> io::Result<()> {
    let mut ignored = vec![0; 64 << 10];
    while stream.read(&mut ignored)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str) -> (Disk, File) {
        let path = std::env::temp_dir().join(format!("icebox-disk-{name}-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(1 << 20).unwrap();
        (Disk::new(file.try_clone().unwrap(), 1 << 20, None), file)
    }

    fn write(disk: &Disk, offset: u64, byte: u8, length: usize) -> Option<u32> {
        disk.perform(WRITE, offset, &mut vec![byte; length]).unwrap()
    }

    fn read(disk: &Disk, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        assert_eq!(disk.perform(READ, offset, &mut data).unwrap(), Some(0));
        data
    }

    #[test]
    fn what_is_written_is_read_and_only_a_flush_puts_it_on_the_medium() {
        let (disk, medium) = disk("flush");
        write(&disk, 1024, 7, 2048);
        write(&disk, 2048, 8, 512);
        assert_eq!(read(&disk, 512, 2560), [vec![0; 512], vec![7; 1024], vec![8; 512], vec![7; 512]].concat());
        let mut there = [1; 2048];
        medium.read_exact_at(&mut there, 1024).unwrap();
        assert_eq!(there, [0; 2048]);
        disk.perform(FLUSH, 0, &mut Vec::new()).unwrap();
        medium.read_exact_at(&mut there, 1024).unwrap();
        assert_eq!((there[0], there[1024], there[1536]), (7, 8, 7));
        assert_eq!(write(&disk, (1 << 20) - 512, 1, 1024), Some(EINVAL));
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_loses_some_of_the_rest() {
        let (disk, medium) = disk("cut");
        write(&disk, 0, 1, 4096);
        disk.perform(FLUSH, 0, &mut Vec::new()).unwrap();
        for n in 1..100 {
            write(&disk, n * 4096, 2, 4096);
        }
        disk.lock().end = Some(End { after: 1, at_flush: true });
        assert_eq!((write(&disk, 99 * 4096, 2, 4096), write(&disk, 100 * 4096, 2, 4096)), (Some(0), Some(0)));
        assert_eq!(disk.perform(FLUSH, 0, &mut Vec::new()).unwrap(), None, "the power goes at the flush");
        assert_eq!(write(&disk, 0, 3, 512), None, "no answer without power");
        disk.power_off(End { after: 1, at_flush: false }, Duration::ZERO);
        let fate = disk.settle(1).unwrap();
        assert!(fate.kept > 10 && fate.lost > 10 && fate.torn > 10, "{fate:?}");
        assert_eq!(fate.kept + fate.lost + fate.torn, 101);
        let mut all = vec![0; 100 * 4096];
        medium.read_exact_at(&mut all, 0).unwrap();
        assert!(all[..4096].iter().all(|byte| *byte == 1));
        assert!(all[4096..].contains(&2) && all[4096..].contains(&0));
        let is_whole = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
        assert!(all.chunks(4096).all(is_whole), "a sector is written as a whole or not at all");
    }

    #[test]
    fn a_client_shakes_hands_writes_and_reads() {
        let (disk, _) = disk("talk");
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let talking = thread::spawn(move || disk.talk(theirs));
        let mut hello = [0; 18];
        ours.read_exact(&mut hello).unwrap();
        let mut say = vec![0, 0, 0, 3];
        for (option, data) in [(8_u32, &[][..]), (OPTION_GO, &[0, 0, 0, 0, 0, 0][..])] {
            say.extend(OPTION_MAGIC.to_be_bytes());
            say.extend(option.to_be_bytes());
            say.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            say.extend(data);
        }
        let mut request = |kind: u16, length: u32, data: &[u8]| {
            say.extend(REQUEST_MAGIC.to_be_bytes());
            say.extend(0_u16.to_be_bytes());
            say.extend(kind.to_be_bytes());
            say.extend(5_u64.to_be_bytes());
            say.extend(512_u64.to_be_bytes());
            say.extend(length.to_be_bytes());
            say.extend(data);
        };
        request(WRITE, 512, &[9; 512]);
        request(READ, 512, &[]);
        request(DISCONNECT, 0, &[]);
        ours.write_all(&say).unwrap();
        talking.join().unwrap().unwrap();
        let mut answers = Vec::new();
        ours.read_to_end(&mut answers).unwrap();
        // Refusal, information (12 bytes), consent; then an empty reply and one with data.
        assert_eq!(answers.len(), 20 + 32 + 20 + 16 + 16 + 512);
        assert!(answers.ends_with(&[9; 512]));
    }
}
