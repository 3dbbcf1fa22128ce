//! Large values by their BLAKE3 digest: models, updates.
//!
//! `dir/ab/cdef…` holds a complete, synced blob; `dir/unfinished/` holds what is being written
//! and is emptied when the store is opened; `dir/staged/` holds the parts of transfers that may go
//! on after a lost connection or a restart.  A blob is hashed while it arrives, and takes its
//! name only when it is complete and on the disk.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const UNFINISHED: &str = "unfinished";
const STAGED: &str = "staged";

/// Why a blob cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The operating system refused.
    #[error("blob store {path}: cannot {action}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no such blob.
    #[error("there is no blob {digest}; if it is a model or an update, fetch it again", digest = hex(.digest))]
    Missing {
        /// Digest that was asked for.
        digest: [u8; 32],
    },
    /// What arrived is not what was announced; nothing was stored.
    #[error("{bytes} bytes arrived with digest {got}, but {expected} was announced; send it again", got = hex(.got), expected = hex(.expected))]
    DigestMismatch {
        /// As announced.
        expected: [u8; 32],
        /// Of the bytes that arrived.
        got: [u8; 32],
        /// How many arrived.
        bytes: u64,
    },
    /// A stored blob is not what was written.
    #[error("blob {digest} at {path} is damaged; remove the file and fetch it again", digest = hex(.digest))]
    Corrupt {
        /// Its file.
        path: PathBuf,
        /// Digest by which it is stored.
        digest: [u8; 32],
    },
}

/// A directory of blobs; clones share it.
#[derive(Clone, Debug)]
pub struct BlobStore {
    dir: Arc<PathBuf>,
    next: Arc<AtomicU64>,
}

impl BlobStore {
    /// Opens or creates the store in `dir`, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the directory cannot be used.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, BlobError> {
        let dir = dir.as_ref().to_owned();
        let (unfinished, staged) = (dir.join(UNFINISHED), dir.join(STAGED));
        std::fs::create_dir_all(&unfinished).map_err(failed(&unfinished, "create"))?;
        std::fs::create_dir_all(&staged).map_err(failed(&staged, "create"))?;
        crate::sync_dir(crate::parent(&dir)).map_err(failed(&dir, "create"))?;
        crate::sync_dir(&dir).map_err(failed(&dir, "create"))?;
        for entry in std::fs::read_dir(&unfinished).map_err(failed(&unfinished, "read"))? {
            let path = entry.map_err(failed(&unfinished, "read"))?.path();
            std::fs::remove_file(&path).map_err(failed(&path, "remove"))?;
        }
        Ok(Self { dir: Arc::new(dir), next: Arc::new(AtomicU64::new(0)) })
    }

    /// Starts a new blob; it is stored by [`BlobWriter::finish`] and vanishes if dropped before.
    ///
    /// # Errors
    /// [`BlobError::Io`] if no file can be made.
    pub fn writer(&self) -> Result<BlobWriter, BlobError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(UNFINISHED).join(number.to_string());
        let file = File::create_new(&path).map_err(failed(&path, "create"))?;
        Ok(BlobWriter {
            store: self.clone(),
            path,
            file: BufWriter::with_capacity(1 << 16, file),
            hasher: blake3::Hasher::new(),
            n_bytes: 0,
            staged: false,
        })
    }

    /// Goes on with the blob that an earlier writer of the same `name` left unfinished, or begins
    /// it.  Dropped before it is finished, it stays staged; so it does if the process is killed.
    ///
    /// `name`: letters, digits, `-` and `.`, at most 255 bytes.  What is there is hashed again, so
    /// that the digest is of the bytes on the disk.  One writer a name at a time is the caller's
    /// duty.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the file cannot be read or made.
    ///
    /// # Panics
    /// If `name` is not such a name.
    pub fn resume(&self, name: &str) -> Result<BlobWriter, BlobError> {
        let path = self.staged_path(name);
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed(&path, "create"))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 17];
        let mut n_bytes = 0;
        loop {
            match file.read(&mut buffer).map_err(failed(&path, "read"))? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    n_bytes += n as u64;
                }
            }
        }
        Ok(BlobWriter {
            store: self.clone(),
            path,
            file: BufWriter::with_capacity(1 << 16, file),
            hasher,
            n_bytes,
            staged: true,
        })
    }

    /// Names and sizes of what is staged, by name.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the folder cannot be read.
    pub fn staged(&self) -> Result<Vec<(String, u64)>, BlobError> {
        let dir = self.dir.join(STAGED);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed(&dir, "read"))? {
            let entry = entry.map_err(failed(&dir, "read"))?;
            // A part may be finished or discarded between the listing and the look at it.
            if let (Ok(name), Ok(about)) = (entry.file_name().into_string(), entry.metadata()) {
                found.push((name, about.len()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Forgets what is staged under `name`; returns whether there was anything.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the file cannot be removed.
    ///
    /// # Panics
    /// If `name` is not one that [`resume`](Self::resume) takes.
    pub fn discard(&self, name: &str) -> Result<bool, BlobError> {
        let path = self.staged_path(name);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(&path, "remove")(error)),
        }
    }

    fn staged_path(&self, name: &str) -> PathBuf {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        assert!(
            (1..=255).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.'),
            "a staged blob is named by the program"
        );
        self.dir.join(STAGED).join(name)
    }

    /// Stores `bytes` and returns their digest.
    ///
    /// # Errors
    /// [`BlobError::Io`] if they cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<[u8; 32], BlobError> {
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// Opens a blob for reading; the bytes are not checked, see [`read_all`](Self::read_all) and
    /// [`verify`](Self::verify).
    ///
    /// # Errors
    /// [`BlobError::Missing`] if there is none.
    pub fn reader(&self, digest: &[u8; 32]) -> Result<BlobReader, BlobError> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BlobError::Missing { digest: *digest },
            _ => failed(&path, "open")(source),
        })?;
        let n_bytes = file.metadata().map_err(failed(&path, "read"))?.len();
        Ok(BlobReader { file, n_bytes })
    }

    /// The whole blob, checked against its digest.
    ///
    /// # Errors
    /// [`BlobError::Missing`], or [`BlobError::Corrupt`] if the disk altered it.
    pub fn read_all(&self, digest: &[u8; 32]) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let mut reader = self.reader(digest)?;
        let mut bytes = Vec::with_capacity(usize::try_from(reader.len()).unwrap_or(0));
        reader.read_to_end(&mut bytes).map_err(failed(&path, "read"))?;
        if blake3::hash(&bytes) != *digest {
            return Err(BlobError::Corrupt { path, digest: *digest });
        }
        Ok(bytes)
    }

    /// Checks a blob against its digest in constant memory.
    ///
    /// # Errors
    /// As [`read_all`](Self::read_all).
    pub fn verify(&self, digest: &[u8; 32]) -> Result<(), BlobError> {
        let path = self.path(digest);
        let mut reader = self.reader(digest)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer).map_err(failed(&path, "read"))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            };
        }
        if hasher.finalize() != *digest {
            return Err(BlobError::Corrupt { path, digest: *digest });
        }
        Ok(())
    }

    /// Whether the blob is complete and stored.
    #[must_use]
    pub fn contains(&self, digest: &[u8; 32]) -> bool {
        self.path(digest).is_file()
    }

    /// Removes a blob; returns whether it was there.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the file cannot be removed.
    pub fn remove(&self, digest: &[u8; 32]) -> Result<bool, BlobError> {
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(&path, "remove")(error)),
        }
    }

    fn path(&self, digest: &[u8; 32]) -> PathBuf {
        let hex = hex(digest);
        self.dir.join(&hex[..2]).join(&hex[2..])
    }
}

/// A blob that is being written.
#[derive(Debug)]
pub struct BlobWriter {
    store: BlobStore,
    path: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    n_bytes: u64,
    /// Whether the file stays when the writer is dropped unfinished.
    staged: bool,
}

impl BlobWriter {
    /// Adds `bytes` at the end.
    ///
    /// # Errors
    /// [`BlobError::Io`] if they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.file.write_all(bytes).map_err(failed(&self.path, "write"))?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.n_bytes
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n_bytes == 0
    }

    /// Stores the blob by its digest, durably, and returns the digest.
    ///
    /// # Errors
    /// [`BlobError::Io`]; nothing is then stored.
    pub fn finish(mut self) -> Result<[u8; 32], BlobError> {
        let digest = *self.hasher.finalize().as_bytes();
        self.store_as(&digest)?;
        Ok(digest)
    }

    /// Stores the blob if its digest is `expected`.
    ///
    /// # Errors
    /// [`BlobError::DigestMismatch`] if it is another; nothing is then stored, nor stays staged.
    pub fn finish_expecting(mut self, expected: [u8; 32]) -> Result<(), BlobError> {
        let got = *self.hasher.finalize().as_bytes();
        if got != expected {
            self.staged = false;
            return Err(BlobError::DigestMismatch { expected, got, bytes: self.n_bytes });
        }
        self.store_as(&got)
    }

    fn store_as(&mut self, digest: &[u8; 32]) -> Result<(), BlobError> {
        self.file.flush().map_err(failed(&self.path, "write"))?;
        self.file.get_ref().sync_all().map_err(failed(&self.path, "sync"))?;
        let to = self.store.path(digest);
        let dir = crate::parent(&to);
        if !dir.is_dir() {
            std::fs::create_dir_all(dir).map_err(failed(dir, "create"))?;
            crate::sync_dir(&self.store.dir).map_err(failed(dir, "create"))?;
        }
        // Over an equal blob too: it has the same bytes, or was damaged and is now whole.
        std::fs::rename(&self.path, &to).map_err(failed(&to, "store"))?;
        crate::sync_dir(dir).map_err(failed(dir, "sync"))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if self.staged {
            // What the buffer holds is written when the buffer is dropped; what the disk refuses
            // is sent again.
            return;
        }
        // Gone already if it was stored; if it cannot be removed, the next open tries again.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A stored blob, open for reading from any offset.
#[derive(Debug)]
pub struct BlobReader {
    file: File,
    n_bytes: u64,
}

impl BlobReader {
    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.n_bytes
    }

    /// Whether the blob has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n_bytes == 0
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| BlobError::Io { path, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_files(dir: &Path) -> usize {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| if path.is_dir() { n_files(&path) } else { 1 })
            .sum()
    }

    #[test]
    fn blob_in_pieces_equals_blob_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut writer = store.writer().unwrap();
        bytes.chunks(7777).for_each(|piece| writer.write(piece).unwrap());
        assert_eq!(writer.len(), 200_000);
        let digest = writer.finish().unwrap();
        assert_eq!(digest, *blake3::hash(&bytes).as_bytes());
        assert_eq!(store.put(&bytes).unwrap(), digest);
        assert_eq!(n_files(dir.path()), 1);
        assert_eq!(store.read_all(&digest).unwrap(), bytes);

        let mut reader = store.reader(&digest).unwrap();
        assert_eq!(reader.len(), 200_000);
        reader.seek(SeekFrom::Start(199_990)).unwrap();
        let mut tail = Vec::new();
        reader.read_to_end(&mut tail).unwrap();
        assert_eq!(tail, bytes[199_990..]);
        assert!(store.remove(&digest).unwrap() && !store.remove(&digest).unwrap());
        assert!(matches!(store.reader(&digest), Err(BlobError::Missing { .. })));
    }

    #[test]
    fn other_digest_than_announced_stores_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let mut writer = store.writer().unwrap();
        writer.write(b"abc").unwrap();
        let error = writer.finish_expecting([1; 32]).unwrap_err();
        assert!(matches!(error, BlobError::DigestMismatch { bytes: 3, .. }), "{error}");
        assert_eq!(n_files(dir.path()), 0);
        let mut writer = store.writer().unwrap();
        writer.write(b"abc").unwrap();
        let digest = *blake3::hash(b"abc").as_bytes();
        writer.finish_expecting(digest).unwrap();
        assert!(store.contains(&digest));
    }

    #[test]
    fn unfinished_blob_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let mut writer = store.writer().unwrap();
        writer.write(&[1; 100_000]).unwrap();
        assert_eq!(n_files(dir.path()), 1);
        drop(writer);
        assert_eq!(n_files(dir.path()), 0);
        // As a killed process leaves it.
        std::fs::write(dir.path().join(UNFINISHED).join("0"), b"half").unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        assert_eq!(n_files(dir.path()), 0);
        store.put(b"x").unwrap();
    }

    #[test]
    fn a_staged_blob_goes_on_where_its_writer_was_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 13 % 251) as u8).collect();
        let digest = *blake3::hash(&bytes).as_bytes();
        let name = "run-1.3.KR.seoul-lab";
        let mut at = 0;
        for end in [100, 70_000, 200_001] {
            let mut writer = store.resume(name).unwrap();
            assert_eq!(writer.len(), at as u64);
            writer.write(&bytes[at..end]).unwrap();
            at = end;
        }
        // Unlike what is unfinished, it outlives the process.
        let store = BlobStore::open(dir.path()).unwrap();
        assert_eq!(store.staged().unwrap(), [(name.to_owned(), 200_001)]);
        let mut writer = store.resume(name).unwrap();
        writer.write(&bytes[at..]).unwrap();
        writer.finish_expecting(digest).unwrap();
        assert_eq!(store.read_all(&digest).unwrap(), bytes);
        assert!(store.staged().unwrap().is_empty());

        // Another file under the same name is noticed at the end, and does not stay.
        let mut writer = store.resume(name).unwrap();
        writer.write(b"other").unwrap();
        drop(writer);
        let mut writer = store.resume(name).unwrap();
        writer.write(&bytes[5..]).unwrap();
        assert!(matches!(
            writer.finish_expecting(digest),
            Err(BlobError::DigestMismatch { bytes: 300_000, .. })
        ));
        assert!(store.staged().unwrap().is_empty());
        store.resume(name).unwrap();
        assert!(store.discard(name).unwrap() && !store.discard(name).unwrap());
    }

    #[test]
    fn damaged_blob_is_not_returned_and_heals() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let digest = store.put(b"weights").unwrap();
        std::fs::write(store.path(&digest), b"weightz").unwrap();
        assert!(matches!(store.read_all(&digest), Err(BlobError::Corrupt { .. })));
        assert!(matches!(store.verify(&digest), Err(BlobError::Corrupt { .. })));
        store.put(b"weights").unwrap();
        assert!(store.verify(&digest).is_ok());
    }
}
