//! Whether this machine's KVM runs our guest, asked by trying it.
//!
//! That /dev/kvm is there says little: a nested one may accept a machine and never come back from its first instruction.
//! So the guest's own kernel is booted up to its first program, with a deadline. The answer holds until the machine is
//! booted again, and is kept in the target directory.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::accelerator::Accelerator;
use super::guest;
use super::image::Image;
use crate::error::{Result, While};
use crate::{run, say};

const DEVICE: &str = "/dev/kvm";
/// Where KVM works, the first program starts within a second.
const PROBE_DEADLINE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(50);
/// What initramfs.sh says when the kernel's command line has `flavour=probe`.
const WORD: &str = "icebox: the probe has come up";

/// Chooses the accelerator; `vm` is the directory of what is kept, `dir` that of this run.
pub(super) fn choose(vm: &Path, dir: &Path, image: &Image) -> Result<Accelerator> {
    if !Path::new(DEVICE).exists() {
        return Ok(Accelerator::Tcg);
    }
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let boot = fs::read_to_string(boot_id).or_fail("read", boot_id)?.trim().to_owned();
    let kept = vm.join("kvm");
    if let Some(accelerator) = run::read_if_there(&kept)?.and_then(|text| recall(&text, &boot)) {
        return Ok(accelerator);
    }
    let wait = say::wait("trying whether KVM works here");
    let works = probe(dir, image)?;
    wait.done(if works { "KVM works here" } else { "KVM does not work here; the guest's processor is software" });
    fs::write(&kept, format!("{boot} {works}\n")).or_fail("write", kept.display().to_string())?;
    Ok(if works { Accelerator::Kvm } else { Accelerator::Tcg })
}

/// What was found earlier, if the machine was not booted since.
fn recall(text: &str, boot: &str) -> Option<Accelerator> {
    match text.trim().split_once(' ')? {
        (of, "true") if of == boot => Some(Accelerator::Kvm),
        (of, "false") if of == boot => Some(Accelerator::Tcg),
        _ => None,
    }
}

fn probe(dir: &Path, image: &Image) -> Result<bool> {
    let initramfs = guest::initramfs(dir, image)?;
    let console = dir.join("probe.log");
    let mut qemu = guest::program();
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-m", "256"]);
    qemu.args(Accelerator::Kvm.arguments()).arg("-kernel").arg(image.kernel()).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 flavour=probe", "-serial"]);
    qemu.arg(format!("file:{}", guest::doubled(&console)));
    // Its words about a KVM that can't be used are not the person's concern.
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut qemu = guest::Qemu::spawn(&mut qemu)?;
    let deadline = Instant::now() + PROBE_DEADLINE;
    while Instant::now() < deadline && !qemu.has_ended()? {
        std::thread::sleep(POLL);
    }
    Ok(run::read_if_there(&console)?.is_some_and(|text| text.contains(WORD)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_one_boot() {
        assert_eq!(recall("a true\n", "a"), Some(Accelerator::Kvm));
        assert_eq!(recall("a false\n", "a"), Some(Accelerator::Tcg));
        assert_eq!(recall("a true\n", "b"), None);
        assert_eq!(recall("", "a"), None);
    }

    #[test]
    fn the_word_is_what_the_guest_says() {
        assert!(include_str!("guest/initramfs.sh").contains(WORD));
    }
}
