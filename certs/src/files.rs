//! How certificates and keys reach the disk, and come from it.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::CertError;

/// Largest certificate, bundle, revocation list or state file that is read.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Writes a new file and waits until the disk has it; a secret is never readable by others,
/// not even before its mode could be changed.
pub(crate) fn write_new(path: &Path, text: &str, secret: bool) -> Result<(), CertError> {
    step(path)?;
    create(path, text, secret).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => CertError::AlreadyThere { path: path.to_owned() },
        _ => CertError::io("write", path)(source),
    })
}

fn create(path: &Path, text: &str, secret: bool) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = secret;
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Puts `text` in the place of the file at `path` in one step: whoever reads finds the old or the new.
///
/// # Errors
/// [`CertError::Io`] if the disk refuses; the old file is then still there.
pub fn replace(path: &Path, text: &str) -> Result<(), CertError> {
    replace_as(path, text, false)
}

/// [`replace`] for a private key, which only its owner can read.
pub(crate) fn replace_secret(path: &Path, text: &str) -> Result<(), CertError> {
    replace_as(path, text, true)
}

fn replace_as(path: &Path, text: &str, secret: bool) -> Result<(), CertError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let part = path.with_file_name(name);
    step(&part)?;
    let write = || {
        // What a crash left behind may have another mode.
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        create(&part, text, secret)
    };
    write().map_err(CertError::io("write", path))?;
    rename(&part, path)
}

/// Gives the file or folder another name, in one step.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), CertError> {
    step(to)?;
    std::fs::rename(from, to).and_then(|()| sync_parent(to)).map_err(CertError::io("write", to))
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), CertError> {
    step(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CertError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder with all that is in it, if it is there.
pub(crate) fn remove_dir(path: &Path) -> Result<(), CertError> {
    step(path)?;
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CertError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a folder and those above it, unless they are there.
pub(crate) fn create_dir(path: &Path) -> Result<(), CertError> {
    step(path)?;
    std::fs::create_dir_all(path)
        .and_then(|()| sync_parent(path))
        .map_err(CertError::io("create", path))
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}

/// The bytes of a file that is not a secret, at most [`FILE_BYTES_MAX`] of them.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, CertError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(CertError::io("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(CertError::io("read", path)(std::io::Error::other(format!(
            "it has more than {FILE_BYTES_MAX} bytes"
        ))));
    }
    Ok(bytes)
}

/// The text of a file that is not a secret.
pub(crate) fn read_text(path: &Path) -> Result<String, CertError> {
    String::from_utf8(read_bytes(path)?)
        .map_err(|_| CertError::io("read", path)(std::io::Error::other("it is not text")))
}

/// Files of a folder, in the order of their names; none if the folder is not there.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>, CertError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CertError::io("read", dir)(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(CertError::io("read", dir))?;
    paths.sort();
    Ok(paths)
}

/// Held by whoever changes an authority's files, so that a command and the daemon do not at once.
pub(crate) struct Lock(#[expect(dead_code, reason = "it is unlocked when it is dropped")] File);

impl Lock {
    /// Waits until nobody else holds the lock of `dir`.
    pub(crate) fn of(dir: &Path) -> Result<Self, CertError> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = options.open(&path).map_err(CertError::io("open", &path))?;
        file.lock().map_err(CertError::io("lock", &path))?;
        Ok(Self(file))
    }
}

/// The text of a private key's file, wiped from memory when it is dropped.
///
/// # Errors
/// [`CertError::KeyReadable`] if others than its owner can read the file.
pub fn read_key_pem(path: &Path) -> Result<Zeroizing<String>, CertError> {
    let mut file = File::open(path).map_err(CertError::io("read", path))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // Of the open file: another cannot be put in its place in between.
        let metadata = file.metadata().map_err(CertError::io("read", path))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(CertError::KeyReadable { path: path.to_owned() });
        }
    }
    // With its whole size at once, so that no part of it stays behind in memory.
    let mut text = Zeroizing::new(String::with_capacity(KEY_BYTES_MAX as usize + 1));
    (&mut file)
        .take(KEY_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(CertError::io("read", path))?;
    if text.len() as u64 > KEY_BYTES_MAX {
        let error = std::io::Error::other(format!("it has more than {KEY_BYTES_MAX} bytes"));
        return Err(CertError::io("read", path)(error));
    }
    Ok(text)
}

/// Longest file of a private key that is read.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// Before each change of a file or folder; tests let one of them fail.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in tests it fails")]
fn step(_: &Path) -> Result<(), CertError> {
    Ok(())
}

#[cfg(test)]
pub(crate) use stop::step;

/// How tests end the work on the disk after any change of it.
#[cfg(test)]
pub(crate) mod stop {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// From now on this thread makes `n` changes and then none, as if it had been killed; `None`: no end.
    pub(crate) fn after(n: Option<usize>) {
        LEFT.set(n);
    }

    pub(crate) fn step(path: &Path) -> Result<(), CertError> {
        match LEFT.get() {
            Some(0) => Err(CertError::io("write", path)(std::io::Error::other("killed"))),
            left => {
                LEFT.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }
}
