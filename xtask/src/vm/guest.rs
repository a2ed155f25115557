//! One guest: QEMU, the ports that connect it with the host, and the deadlines.
//!
//! Each port is a Unix socket that we listen on before QEMU starts, so no output is lost. The
//! guest says `ready`, then `exit STATUS`, on the control port; a guest that does not is ended and its console is shown.
//! We say at most `reset` there, and the guest resets itself at once: one of the two ways in which its power is cut.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::accelerator::Accelerator;
use super::disks::{Data, Disks};
use super::flavour::Flavour;
use super::image::Image;
use crate::error::{Cause, Error, Result, While};
use crate::{run, say};

/// From QEMU's start to the command's.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// From the command's end to QEMU's.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// From our word to the guest's reset, and from its end to its last output.
const RESET_DEADLINE: Duration = Duration::from_secs(20);
/// Untouched memory costs nothing; the largest box of the tests has 4 GiB.
const MEMORY_MIB: u32 = 6144;
const CONSOLE_LINES_MAX: usize = 60;
/// The port of what the command prints.
const OUTPUT: &str = "output";
const BUFFER_BYTES: usize = 64 * 1024;

const INITRAMFS: &str = include_str!("guest/initramfs.sh");
const INIT: &str = include_str!("guest/init.sh");
const JOB: &str = include_str!("guest/job.sh");
const JOB_SERVICE: &str = include_str!("guest/job.service");

/// What is to be started.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) image: &'a Image,
    pub(super) disks: Disks,
    pub(super) flavour: Flavour,
    pub(super) processors: u32,
    pub(super) accelerator: Accelerator,
}

/// A guest that has been started, ended with its owner. Its disks go with it, but for a data disk that is kept.
#[derive(Debug)]
pub(crate) struct Running {
    qemu: Qemu,
    disks: Disks,
    said: Receiver<Said>,
    /// Our end of the control port, once QEMU has taken the other.
    control: Arc<OnceLock<UnixStream>>,
}

/// How the power of a guest is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The guest resets itself: what its kernel and devices had not done is not done.
    Reset,
    /// QEMU is killed: as the reset, and not even the guest is asked.
    Kill,
}

/// Who sees what the command prints.
pub(crate) enum Terminal {
    /// The command has this process's terminal.
    Own,
    /// The command's output, standard error included, is written here as it comes.
    Output(Box<dyn Write + Send>),
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: i32,
    /// Whether it left files.
    pub(crate) files: bool,
}

/// How long a guest may work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// From its command's start to its end.
    Whole(Duration),
    /// Without printing anything.
    Silence(Duration),
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Patience::Whole(limit) | Patience::Silence(limit) => limit,
        }
    }
}

/// What the ports bring.
#[derive(Debug)]
enum Said {
    Control(String),
    /// The command has printed something.
    Printed,
    /// A port that has ended.
    Ended(&'static str),
}

impl Guest<'_> {
    /// Boots. The command begins when the guest is ready; what it prints goes to `terminal` all the time.
    pub(super) fn start(self, terminal: Terminal) -> Result<Running> {
        let (sender, said) = channel();
        let ports =
            Ports { control: self.listen("control")?, output: self.listen(OUTPUT)?, files: self.listen("files")? };
        let initramfs = initramfs(&self.disks.dir, self.image)?;
        let archive = self.disks.archive();
        let files = File::create(&archive).or_fail("make", archive.display().to_string())?;
        let mut command = self.command(&initramfs, matches!(terminal, Terminal::Own));
        let qemu = Qemu::spawn(&mut command)?;
        let control = Arc::default();
        hear_control(ports.control, Arc::clone(&control), sender.clone());
        let printed: Box<dyn Write + Send> = match terminal {
            Terminal::Own => Box::new(io::stdout()),
            Terminal::Output(to) => to,
        };
        copy_port(OUTPUT, ports.output, printed, sender.clone());
        copy_port("files", ports.files, files, sender);
        Ok(Running { qemu, disks: self.disks, said, control })
    }

    fn listen(&self, port: &str) -> Result<UnixListener> {
        let path = self.disks.socket(port);
        UnixListener::bind(&path).or_fail("listen on", path.display().to_string())
    }

    fn command(&self, initramfs: &Path, interactive: bool) -> Command {
        let mut qemu = program();
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]);
        qemu.args(self.accelerator.arguments()).args(["-m", &MEMORY_MIB.to_string()]);
        qemu.args(["-smp", &self.processors.to_string()]);
        qemu.arg("-kernel").arg(self.image.kernel()).arg("-initrd").arg(initramfs);
        // A panic ends the guest instead of hanging it, and so does a processor that has not left its kernel for two minutes.
        // The console has warnings, so that it shows where that is.
        let line = format!(
            "console=ttyS0 loglevel=5 panic=-1 softlockup_panic=1 watchdog_thresh=60 systemd.show_status=0 flavour={} {}",
            self.flavour.name(),
            self.accelerator.kernel_parameters()
        );
        qemu.args(["-append", &line, "-serial"]).arg(format!("file:{}", self.disks.console().display()));
        let forgotten = "if=virtio,format=raw,snapshot=on,cache=unsafe";
        let root = self.image.root();
        for disk in [Some(&root), Some(&self.disks.carry), self.disks.images.as_ref()].into_iter().flatten() {
            qemu.arg("-drive").arg(format!("{forgotten},file={}", doubled(disk)));
        }
        // To the guest this is a disk with a volatile write cache, and a flush is answered when QEMU's fdatasync is.
        let data = match &self.disks.data {
            Data::Served(socket) => {
                format!("file.driver=nbd,file.server.type=unix,file.server.path={}", doubled(socket))
            }
            Data::File(path) => format!("file={}", doubled(path)),
        };
        qemu.arg("-drive").arg(format!("if=virtio,format=raw,cache=writeback,{data}"));
        qemu.args(["-device", "virtio-serial"]);
        for port in ["control", "output", "files"] {
            qemu.arg("-chardev").arg(format!("socket,id={port},path={}", doubled(&self.disks.socket(port))));
            qemu.arg("-device").arg(format!("virtserialport,chardev={port},name=icebox.{port}"));
        }
        if interactive {
            qemu.args(["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]);
        } else {
            qemu.stdin(Stdio::null()).stdout(Stdio::null());
        }
        // Its temporary copies of disks are as large as what a guest writes.
        qemu.env("TMPDIR", &self.disks.dir);
        qemu
    }
}

/// The first root file system, with this version's scripts.
pub(super) fn initramfs(dir: &Path, image: &Image) -> Result<PathBuf> {
    let (tree, file) = (dir.join("initramfs"), dir.join("initramfs.cpio"));
    for dir in ["bin", "dev", "icebox", "root"] {
        fs::create_dir_all(tree.join(dir)).or_fail("make", tree.display().to_string())?;
    }
    let scripts =
        [("init", INITRAMFS), ("icebox/init", INIT), ("icebox/job", JOB), ("icebox/icebox-job.service", JOB_SERVICE)];
    for (name, text) in scripts {
        fs::write(tree.join(name), text).or_fail("write", name)?;
    }
    run::quiet(Command::new("chmod").arg("0755").args(scripts.map(|(name, _)| tree.join(name))))?;
    run::quiet(Command::new("chmod").arg("0644").arg(tree.join("icebox/icebox-job.service")))?;
    run::quiet(Command::new("cp").arg(image.busybox()).arg(tree.join("bin/busybox")))?;
    run::quiet(Command::new("cp").arg("-r").arg(image.modules()).arg(tree.join("modules")))?;
    let pack = "find . | busybox cpio -o -H newc >../initramfs.cpio";
    run::quiet(Command::new("sh").args(["-c", pack]).current_dir(&tree))?;
    Ok(file)
}

/// QEMU's options are separated by commas; one in a name is written twice.
pub(super) fn doubled(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

struct Ports {
    control: UnixListener,
    output: UnixListener,
    files: UnixListener,
}

impl Running {
    /// Waits for the command's end, and unpacks into `out` the files it left.
    pub(super) fn wait(mut self, patience: Patience, out: &Path) -> Result<End> {
        let heard = hear(&self.said, patience);
        let ended = self.qemu.end(if heard.is_ok() { END_DEADLINE } else { Duration::ZERO });
        let status = heard.and_then(|status| ended.map(|()| status)).inspect_err(|_| self.show_console())?;
        Ok(End { status, files: unpack(&self.disks.archive(), out)? })
    }

    /// Cuts the power, and returns when the machine is off and everything that it had said before has been written to
    /// its terminal.
    pub(crate) fn cut(mut self, way: Cut) -> Result<()> {
        match way {
            Cut::Kill => {
                self.qemu.0.kill().or_fail("kill", "qemu-system-x86_64")?;
                self.qemu.0.wait().or_fail("wait for", "qemu-system-x86_64")?;
            }
            Cut::Reset => {
                let port = self.control.get().ok_or_else(|| ended("it never took the control port"))?;
                (&mut &*port).write_all(b"reset\n").or_fail("write to", "the guest's control port")?;
                self.qemu.end(RESET_DEADLINE).inspect_err(|_| self.show_console())?;
            }
        }
        let deadline = Instant::now() + RESET_DEADLINE;
        loop {
            match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Said::Ended(OUTPUT)) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = RESET_DEADLINE.as_secs();
                    return Err(Error::new("read", "the guest's output", Cause::Late { seconds }));
                }
            }
        }
    }

    /// Shows how the console ended.
    pub(crate) fn show_console(&self) {
        let lines = self.console_end();
        if lines.is_empty() {
            return say::heading("The guest's console has said nothing");
        }
        say::heading("The guest's console ended with");
        lines.iter().for_each(|line| say::fact(line));
    }

    /// The last lines of the console.
    pub(crate) fn console_end(&self) -> Vec<String> {
        let bytes = fs::read(self.disks.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES_MAX)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

/// QEMU's program. It ends with the thread that starts it: a killed xtask leaves no guest behind.
pub(super) fn program() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command
}

/// A running QEMU, ended with its owner.
#[derive(Debug)]
pub(super) struct Qemu(Child);

impl Qemu {
    pub(super) fn spawn(command: &mut Command) -> Result<Qemu> {
        command.spawn().map(Qemu).or_fail("run", "qemu-system-x86_64")
    }

    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait().or_fail("wait for", "qemu-system-x86_64")?.is_some())
    }

    fn end(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let late = || Error::new("wait for", "qemu-system-x86_64", Cause::Late { seconds: patience.as_secs() });
        while !self.has_ended()? {
            if Instant::now() >= deadline {
                return Err(late());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the guest has told the command's exit status, and its output and files have come.
fn hear(said: &Receiver<Said>, patience: Patience) -> Result<i32> {
    let mut works = false;
    let mut limit = BOOT_DEADLINE;
    let mut deadline = Instant::now() + limit;
    let mut status = None;
    let mut open = 2;
    loop {
        match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Said::Control(line)) => match line.split_once(' ') {
                None if line == "ready" => {
                    works = true;
                    limit = patience.limit();
                    deadline = Instant::now() + limit;
                }
                Some(("exit", code)) => {
                    status = code.parse().ok();
                    limit = END_DEADLINE;
                    deadline = Instant::now() + limit;
                }
                _ => return Err(ended(&line)),
            },
            Ok(Said::Printed) => {
                if works && status.is_none() && matches!(patience, Patience::Silence(_)) {
                    deadline = Instant::now() + limit;
                }
            }
            // The ports end with QEMU, so nothing is missing by then.
            Ok(Said::Ended("control")) if status.is_none() => return Err(ended("it ended without a word")),
            Ok(Said::Ended("control")) => {}
            Ok(Said::Ended(_)) => open -= 1,
            Err(RecvTimeoutError::Timeout) => {
                return Err(Error::new("run", "the guest", Cause::Late { seconds: limit.as_secs() }));
            }
            Err(RecvTimeoutError::Disconnected) => open = 0,
        }
        if let (Some(status), 0) = (status, open) {
            return Ok(status);
        }
    }
}

fn ended(what: &str) -> Error {
    Error::new("run", "the guest", Cause::Unexpected(what.to_owned()))
}

fn hear_control(listener: UnixListener, ours: Arc<OnceLock<UnixStream>>, sender: Sender<Said>) {
    thread::spawn(move || {
        let stream = listener.accept().and_then(|(stream, _)| {
            // Set only here.
            let _ = ours.set(stream.try_clone()?);
            Ok(BufReader::new(stream))
        });
        for line in stream.into_iter().flat_map(BufRead::lines).map_while(io::Result::ok) {
            let _ = sender.send(Said::Control(line));
        }
        let _ = sender.send(Said::Ended("control"));
    });
}

fn copy_port(port: &'static str, listener: UnixListener, mut to: impl Write + Send + 'static, sender: Sender<Said>) {
    thread::spawn(move || {
        // Write errors (a closed pipe) are ignored; the guest must not block on it.
        let mut copy = |mut stream: UnixStream| {
            let mut buffer = vec![0; BUFFER_BYTES];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                let _ = to.write_all(&buffer[..length]).and_then(|()| to.flush());
                if port == OUTPUT {
                    let _ = sender.send(Said::Printed);
                }
            }
        };
        if let Ok((stream, _)) = listener.accept() {
            copy(stream);
        }
        let _ = sender.send(Said::Ended(port));
    });
}

/// Unpacks what the command left, if anything.
fn unpack(archive: &Path, out: &Path) -> Result<bool> {
    if out.is_dir() {
        fs::remove_dir_all(out).or_fail("remove", out.display().to_string())?;
    }
    if fs::metadata(archive).or_fail("read", archive.display().to_string())?.len() == 0 {
        return Ok(false);
    }
    fs::create_dir_all(out).or_fail("make", out.display().to_string())?;
    run::quiet(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(out))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that is ready at once and prints `lines` times, each after a tenth of its patience.
    fn heard(patience: Patience, lines: u32) -> Result<i32> {
        let (sender, said) = channel();
        sender.send(Said::Control("ready".to_owned())).unwrap();
        let pause = patience.limit() / 10;
        thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..lines {
                    thread::sleep(pause);
                    let _ = sender.send(Said::Printed);
                }
                let _ = sender.send(Said::Control("exit 7".to_owned()));
                let _ = [OUTPUT, "files"].map(|port| sender.send(Said::Ended(port)));
            });
            hear(&said, patience)
        })
    }

    #[test]
    fn silence_ends_a_guest_and_long_work_does_not() {
        let limit = Duration::from_secs(1);
        assert_eq!(heard(Patience::Silence(limit), 15).unwrap(), 7);
        assert!(heard(Patience::Whole(limit), 15).is_err());
        let (_sender, said) = channel();
        _sender.send(Said::Control("ready".to_owned())).unwrap();
        assert!(hear(&said, Patience::Silence(Duration::from_millis(10))).is_err());
    }
}
