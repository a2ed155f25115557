//! Disks of boxes on block devices of the operator's: a list of devices, or a program that makes and deletes them.
//!
//! A device is taken, filled with a formatted file system, and then marked as the disk of a box; it is given back by another mark
//! and wiped in the background (`wipe`). Each mark is one sector in the device itself (`header`), so devices say after a crash,
//! and with a database from a backup, which box has which of them.
//!
//! Invariants: a device with foreign content, in use by something else, or of another installation is never written, unless the operator
//! forces it; a device that can be taken reads as zeroes; a crash between any two steps leaves a device that is a
//! box's, or one that is wiped and then free.
//!
//! Leaves out: who may have a disk, and volumes of files and snapshots, which stay files of the data directory.

mod header;
mod program;
mod scan;
mod settings;
mod slots;
mod wipe;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

pub(crate) use header::BOOT_BLOCK_BYTES;
use header::{Header, Use};
use program::Program;
use scan::Found;
pub use settings::{BlockSettings, BlockSource, DeviceReport, Refused};
use slots::{Shared, Slot, State};

use crate::clone::copy_data;
use crate::device;
use crate::digest::hex;
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::fit;
use crate::tool::Tool;

/// The file of the data directory with the name of the installation, which headers have.
const OWNER_FILE: &str = "devices.id";
const OWNER_BYTES: usize = 16;
/// Longest label of an ext4.
const LABEL_BYTES_MAX: usize = 16;

const TUNE2FS: Tool = Tool {
    program: "tune2fs",
    missing: "there is no tune2fs on this machine; install the package e2fsprogs",
    step: Step::TakeDevice,
};

/// The devices of one installation.
#[derive(Debug)]
pub(crate) struct Devices {
    shared: Arc<Shared>,
    /// Devices to be given back.
    jobs: Sender<PathBuf>,
}

/// A device that has been taken and is no disk yet. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    devices: Arc<Devices>,
    path: PathBuf,
    id: String,
    generation: u64,
    kept: bool,
}

impl Devices {
    /// Looks at all devices. The lock of the data directory is held.
    pub(crate) fn open(data_dir: &Path, settings: &BlockSettings) -> Result<Arc<Devices>> {
        let owner = owner_of(data_dir)?;
        let (slots, refused) = scan::all(settings, &owner)?;
        let (jobs, work) = channel();
        for (path, slot) in &slots {
            if matches!(slot.state, State::Wiping { .. }) {
                let _ = jobs.send(path.clone());
            }
        }
        let shared = Arc::new(Shared { settings: settings.clone(), owner, refused, slots: Mutex::new(slots) });
        let weak = Arc::downgrade(&shared);
        thread::Builder::new()
            .name("wipe".to_owned())
            .spawn(move || wipe::work(&weak, &work))
            .at(Step::OpenDevices, data_dir)?;
        Ok(Arc::new(Devices { shared, jobs }))
    }

    /// True if new disks lie on devices.
    pub(crate) fn for_new(&self) -> bool {
        self.shared.settings.for_new
    }

    pub(crate) fn report(&self) -> DeviceReport {
        let mut report =
            DeviceReport { for_new: self.for_new(), refused: self.shared.refused.clone(), ..DeviceReport::default() };
        for (path, slot) in &*self.shared.slots() {
            match &slot.state {
                State::Free => report.free += 1,
                State::Making | State::Disk { .. } => report.disks += 1,
                State::Wiping { trouble } => {
                    report.wiping += 1;
                    let why = trouble.clone();
                    report.refused.extend(why.map(|why| Refused { path: path.clone(), why }));
                }
            }
        }
        report
    }

    /// Refuses a disk of that size if it is known already that there is no device for it.
    pub(crate) fn check_free(&self, size_gib: u32) -> Result<()> {
        match self.shared.settings.source {
            BlockSource::List(_) if !self.shared.slots().values().any(|slot| slot.fits(size_gib)) => {
                Err(no_device(size_gib))
            }
            _ => Ok(()),
        }
    }

    /// The device that is the disk of a box.
    pub(crate) fn find(&self, id: &str) -> Option<PathBuf> {
        self.disk(id).map(|(path, _)| path)
    }

    fn disk(&self, wanted: &str) -> Option<(PathBuf, u64)> {
        let slots = self.shared.slots();
        let of = |(path, slot): (&PathBuf, &Slot)| match &slot.state {
            State::Disk { id, generation } if id == wanted => Some((path.clone(), *generation)),
            _ => None,
        };
        slots.iter().filter_map(of).max_by_key(|(_, generation)| *generation)
    }

    /// The ids of all boxes whose disks are devices.
    pub(crate) fn ids(&self) -> Vec<String> {
        let slots = self.shared.slots();
        let of = |slot: &Slot| match &slot.state {
            State::Disk { id, .. } => Some(id.clone()),
            _ => None,
        };
        slots.values().filter_map(of).collect()
    }

    /// Takes a device for a disk of the box: its first one, or one that is to take the place of that which it has.
    pub(crate) fn take(self: &Arc<Self>, id: &str, size_gib: u32) -> Result<Claim> {
        let generation = self.disk(id).map_or(0, |(_, generation)| generation + 1);
        let path = match self.shared.program() {
            Some(program) => self.make(&program, id, generation, size_gib)?,
            None => self.choose(size_gib)?,
        };
        // From here on it is given back if anything fails.
        let claim = Claim { devices: Arc::clone(self), path, id: id.to_owned(), generation, kept: false };
        claim.mark(Use::Making)?;
        Ok(claim)
    }

    /// The smallest free device of the list that is large enough.
    fn choose(&self, size_gib: u32) -> Result<PathBuf> {
        let mut slots = self.shared.slots();
        let chosen = slots.iter_mut().filter(|(_, slot)| slot.fits(size_gib)).min_by_key(|(_, slot)| slot.bytes);
        let (path, slot) = chosen.ok_or_else(|| no_device(size_gib))?;
        slot.state = State::Making;
        Ok(path.clone())
    }

    /// Has the program make a device.
    fn make(&self, program: &Program, id: &str, generation: u64, size_gib: u32) -> Result<PathBuf> {
        let name = if generation == 0 { id.to_owned() } else { format!("{id}.{generation}") };
        let wanted = u64::from(size_gib) << 30;
        let path = program.create(&name, wanted)?;
        let wrong = |why: String| Error::new(Step::TakeDevice, path.display().to_string(), Cause::Refused(why));
        // What is not empty may be anyone's: it is not given to `delete` either.
        match scan::look(&path, &self.shared.owner)? {
            Found::Empty if scan::starts_with_zeroes(&path).at(Step::TakeDevice, &path)? => {}
            Found::Empty => return Err(wrong("a new device must read as zeroes, and this one does not".to_owned())),
            Found::Ours(_) => return Err(wrong("the program has handed out a device that is in use".to_owned())),
            Found::Foreign(why) => return Err(wrong(why)),
        }
        let bytes = device::bytes(&path)?;
        let slot = Slot { bytes, name: Some(name), state: State::Making };
        self.shared.slots().insert(path.clone(), slot);
        if bytes < wanted {
            self.discard(&path);
            return Err(wrong(format!("it has {bytes} bytes, and {wanted} were asked for")));
        }
        Ok(path)
    }

    /// Gives the disk of a box back. On return the device is nobody's, on disk too; it is wiped in the background.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        while let Some((path, _)) = self.disk(id) {
            self.end_disk(&path)?;
        }
        Ok(())
    }

    fn end_disk(&self, path: &Path) -> Result<()> {
        scan::mark(path, &self.shared.owner, Use::Wiping)?;
        self.discard(path);
        Ok(())
    }

    fn discard(&self, path: &Path) {
        if let Some(slot) = self.shared.slots().get_mut(path) {
            slot.state = State::Wiping { trouble: None };
        }
        let _ = self.jobs.send(path.to_owned());
    }

    /// Makes the device at least so large, or refuses.
    pub(crate) fn make_room(&self, path: &Path, wanted: u64) -> Result<()> {
        let bytes = device::bytes(path)?;
        if bytes >= wanted {
            return Ok(());
        }
        let refuse = |bytes| Err(Error::new(Step::GrowVolume, path.display().to_string(), Cause::FixedSize { bytes }));
        let name = self.shared.slots().get(path).and_then(|slot| slot.name.clone());
        let (Some(program), Some(name)) = (self.shared.program(), name) else { return refuse(bytes) };
        program.grow(&name, wanted)?;
        let bytes = device::bytes(path)?;
        if let Some(slot) = self.shared.slots().get_mut(path) {
            slot.bytes = bytes;
        }
        if bytes < wanted { refuse(bytes) } else { Ok(()) }
    }
}

impl Claim {
    /// Copies an image to the device, and makes its file system have that size.
    pub(crate) fn fill(&self, image: &File, size_gib: u32) -> Result<()> {
        let device = OpenOptions::new().write(true).open(&self.path).at(Step::TakeDevice, &self.path)?;
        copy_data(image, &device, BOOT_BLOCK_BYTES)
            .and_then(|()| device.sync_all())
            .at(Step::TakeDevice, &self.path)?;
        drop(device);
        fit::fill_to(&self.path, u64::from(size_gib) << 30)?;
        let label = &self.id[..self.id.len().min(LABEL_BYTES_MAX)];
        TUNE2FS.run(TUNE2FS.command().args(["-L", label]).arg(&self.path), &self.path).map(drop)
    }

    /// Makes the device the disk of the box. On return that is on disk. A disk that it had is given back.
    pub(crate) fn keep(mut self) -> Result<PathBuf> {
        let before = self.devices.disk(&self.id);
        self.mark(Use::Disk)?;
        self.kept = true;
        if let Some(slot) = self.devices.shared.slots().get_mut(&self.path) {
            slot.state = State::Disk { id: self.id.clone(), generation: self.generation };
        }
        if let Some((old, _)) = before {
            self.devices.end_disk(&old)?;
        }
        Ok(self.path.clone())
    }

    fn mark(&self, state: Use) -> Result<()> {
        let (owner, id) = (self.devices.shared.owner.clone(), self.id.clone());
        let header = Header { owner, state, generation: self.generation, id };
        header.write(&self.path).at(Step::TakeDevice, &self.path)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            self.devices.discard(&self.path);
        }
    }
}

fn no_device(size_gib: u32) -> Error {
    Error::new(Step::TakeDevice, format!("{size_gib} GiB"), Cause::NoDevice { gib: Some(size_gib) })
}

/// True if nothing has the device mounted.
pub(crate) fn is_at_rest(path: &Path) -> std::io::Result<bool> {
    scan::is_in_use(path).map(|used| !used)
}

/// The name of the installation, made at the first start.
fn owner_of(data_dir: &Path) -> Result<String> {
    let path = data_dir.join(OWNER_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let name = text.trim();
            if name.len() == OWNER_BYTES * 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(name.to_owned());
            }
            Err(Error::new(Step::OpenDevices, path.display().to_string(), Cause::Corrupt))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0; OWNER_BYTES];
            let source = Path::new("/dev/urandom");
            File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).at(Step::OpenDevices, source)?;
            let name = hex(&bytes);
            files::write_atomic(data_dir, OWNER_FILE, name.as_bytes(), 0o600).at(Step::OpenDevices, &path)?;
            Ok(name)
        }
        Err(error) => Err(error).at(Step::OpenDevices, &path),
    }
}
