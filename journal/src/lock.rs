//! One process a directory: two writers would interleave records of one journal.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::{self, Output};

/// How long a held directory is waited for before its holder is named, and between two looks.
const PATIENCE: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(10);

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process serves it.
    #[error("{dir} is already served by process {pid}; stop it, or use another folder", pid = .pid.map_or("(unknown)".to_owned(), |pid| pid.to_string()))]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The process that holds it, as it wrote itself into the lock file.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error(
        "cannot lock {path}: {source}; {}, and make sure that the directory lies on a local disk", crate::disk::advice(.source)
    )]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Holds a directory for this process until dropped; the system frees it if the process dies.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the directory `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that has it.
    pub fn acquire(dir: impl AsRef<Path>) -> Result<Self, LockError> {
        let dir = dir.as_ref();
        let path = dir.join("lock");
        let at = |source| LockError::Io { path: path.clone(), source };
        disk::create_dir_all(dir).map_err(at)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = disk::open(&options, &path).map_err(at)?;
        let end = Instant::now() + PATIENCE;
        let locked = loop {
            match file.try_lock() {
                // A child process of the holder keeps the lock until it has begun its own program.
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    std::thread::sleep(PAUSE);
                }
                tried => break tried,
            }
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The holder may not have written its pid yet: the refusal stands all the same.
                let _ = file.take(32).read_to_string(&mut text);
                return Err(LockError::Held { dir: dir.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(at(source)),
        }
        disk::set_len(&file, 0).map_err(at)?;
        file.rewind().map_err(at)?;
        let mut output = Output(file);
        output.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(at)?;
        Ok(Self { _file: output.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_is_refused_and_names_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let lock = DirLock::acquire(&dir).unwrap();
        let text = DirLock::acquire(&dir).unwrap_err().to_string();
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        assert!(text.contains("another folder"), "{text}");
        drop(lock);
        DirLock::acquire(&dir).unwrap();
    }

    #[test]
    fn lock_of_a_dead_process_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "4194304000\n").unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
        drop(lock);
    }
}
