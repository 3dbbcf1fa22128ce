//! How certificates and keys reach the disk.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use crate::CertError;

/// Writes a new file and waits until the disk has it; a secret is never readable by others,
/// not even before its mode could be changed.
pub(crate) fn write_new(path: &Path, text: &str, secret: bool) -> Result<(), CertError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = secret;
    let write = |mut file: File| file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    options.open(path).and_then(write).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => CertError::AlreadyThere { path: path.to_owned() },
        _ => CertError::io("write", path)(source),
    })
}

/// Puts `text` in the place of the file at `path` in one step: whoever reads finds the old or the new.
///
/// # Errors
/// [`CertError::Io`] if the disk refuses; the old file is then still there.
pub fn replace(path: &Path, text: &str) -> Result<(), CertError> {
    let part = path.with_extension("new");
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(CertError::io("write", path))
}
