//! Running from a sealed copy in memory. A process that enters a container can be reached there as `/proc/PID/exe`; if
//! that is the file on the host's disk, the container could overwrite it (CVE-2019-5736). A fully sealed memfd can only
//! be read.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStringExt,
    },
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

use crate::{Result, Step, error::OnStep as _, process::StringList, sys::process as sys};

const SELF: &str = "/proc/self/exe";

/// All seals: no writing, no change of size, no further seals.
fn all_seals() -> SealFlags {
    SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
}

/// Replaces this process by the same program from a sealed copy, unless that is what runs already.
///
/// # Errors
/// If the copy cannot be made or executed.
pub fn ensure() -> Result<()> {
    let own = File::open(SELF).on(Step::Exec, SELF)?;
    if fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(all_seals())) {
        return Ok(());
    }
    let copy = seal(own, "icerun").on(Step::Exec, "sealed copy")?;
    let strings = |list: Vec<Vec<u8>>| -> Result<Vec<CString>> {
        list.into_iter().map(|s| CString::new(s).map_err(io::Error::from).on(Step::Exec, "arguments")).collect()
    };
    let args = strings(std::env::args_os().map(OsStringExt::into_vec).collect())?;
    let env = strings(
        std::env::vars_os()
            .map(|(key, value)| {
                let mut entry = key.into_vec();
                entry.push(b'=');
                entry.extend(value.into_vec());
                entry
            })
            .collect(),
    )?;
    Err(sys::exec_file(copy.as_fd(), &StringList::new(&args), &StringList::new(&env))).on(Step::Exec, "sealed copy")
}

/// A sealed copy of an executable file in memory.
///
/// # Errors
/// The kernel's errors: no memory, no memfd.
pub fn seal(mut from: impl io::Read, name: &str) -> io::Result<OwnedFd> {
    // MFD_EXEC asks for an executable memfd where the sysctl vm.memfd_noexec says otherwise (Linux 6.3); older
    // kernels do not know the flag.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    let mut file = File::from(fd);
    io::copy(&mut from, &mut file)?;
    file.flush()?;
    fcntl_add_seals(&file, all_seals())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    #[test]
    fn a_sealed_copy_refuses_every_change() {
        let fd = super::seal(&b"#!/bin/true"[..], "test").unwrap();
        let mut file = std::fs::File::from(fd);
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(1 << 20).is_err());
    }
}
