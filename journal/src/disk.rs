//! The one way to the disk: whatever has to be there after a crash goes through these few calls.
//!
//! Each call is a [failpoint](crate::failpoint) by its kind and, under the name `disk::any`, one of all calls
//! in their order, so that a test can let the n-th of them fail, or end the process in it.
//!
//! Deliberately not here: reading. What was read is checked by hashes, wherever it comes from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::failpoint;

/// Every call, in the order in which they come.
const ANY: &str = "disk::any";
const CREATE: &str = "disk::create";
const WRITE: &str = "disk::write";
const SYNC: &str = "disk::sync";
const RENAME: &str = "disk::rename";
const REMOVE: &str = "disk::remove";
const TRUNCATE: &str = "disk::truncate";
const INDEX: &str = "disk::index";

/// A file to which bytes go in order.
#[derive(Debug)]
pub(crate) struct Output(pub(crate) File);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match failpoint::fault(ANY).or_else(|| failpoint::fault(WRITE)) {
            None => self.0.write(bytes),
            Some(fault) => {
                if fault.short {
                    self.0.write_all(&bytes[..bytes.len() / 2])?;
                }
                Err(fault.error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

pub(crate) fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    reach(CREATE)?;
    options.open(path)
}

pub(crate) fn create_dir_all(path: &Path) -> io::Result<()> {
    reach(CREATE)?;
    fs::create_dir_all(path)
}

/// Waits until the disk has the file, its length included.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    reach(SYNC)?;
    file.sync_all()
}

/// Waits until the disk has the file's bytes and what it takes to read them.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    reach(SYNC)?;
    file.sync_data()
}

/// Makes the entries of the directory at `path` durable: without it, a file that was synced can
/// still be missing after a power failure.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    reach(SYNC)?;
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    reach(RENAME)?;
    fs::rename(from, to)
}

/// Removes a file; returns whether it was there.
pub(crate) fn remove_file(path: &Path) -> io::Result<bool> {
    reach(REMOVE)?;
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an empty folder.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    reach(REMOVE)?;
    fs::remove_dir(path)
}

pub(crate) fn remove_dir_all(path: &Path) -> io::Result<()> {
    reach(REMOVE)?;
    fs::remove_dir_all(path)
}

pub(crate) fn set_len(file: &File, n_bytes: u64) -> io::Result<()> {
    reach(TRUNCATE)?;
    file.set_len(n_bytes)
}

/// Asked before sled is: it does its own input and output.
pub(crate) fn index() -> io::Result<()> {
    reach(INDEX)
}

fn reach(point: &'static str) -> io::Result<()> {
    match failpoint::fault(ANY).or_else(|| failpoint::fault(point)) {
        None => Ok(()),
        Some(fault) => Err(fault.error),
    }
}

/// Whether `error` says that there is no room, which passes when somebody makes some.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What a person can do about `error`.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    /// `EMFILE`, `ENFILE`: Rust has no kind of their own for them.
    const TOO_MANY_FILES: [i32; 2] = [24, 23];
    match error.kind() {
        _ if is_full(error) => "make room on this disk, then start again; nothing recorded is lost",
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only; look for disk errors in the system's log and mount it writable"
        }
        io::ErrorKind::PermissionDenied => "check who owns it and as whom this program runs",
        _ if error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code)) => {
            "too many files are open; raise the limit (`ulimit -n`, LimitNOFILE=) and start again"
        }
        _ => "check the disk and the system's log, then start again; nothing recorded is lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_refusal_says_what_to_do() {
        for (code, expected) in [
            (28, "make room"),
            (30, "read-only"),
            (13, "who owns"),
            (24, "ulimit"),
            (5, "check the disk"),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert!(advice(&error).contains(expected), "{error}: {}", advice(&error));
        }
    }
}
