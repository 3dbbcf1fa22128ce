//! Large values by their BLAKE3 digest: models, updates.
//!
//! `dir/ab/cdef…` holds a complete, synced blob; `dir/unfinished/` holds what is being written
//! and is emptied when the store is opened; `dir/staged/` holds the parts of transfers that may go
//! on after a lost connection or a restart.  A blob is hashed while it arrives, and takes its
//! name only when it is complete and on the disk.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{self, Output};

const UNFINISHED: &str = "unfinished";
const STAGED: &str = "staged";

/// Why a blob cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The operating system refused.
    #[error("blob store {path}: cannot {action}: {source}; {}", disk::advice(.source))]
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

impl BlobError {
    /// Whether there was no room on the disk: it can be tried again when somebody has made some.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if disk::is_full(source))
    }
}

/// What a [`BlobStore::sweep`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many blobs.
    pub n_blobs: usize,
    /// Their bytes together.
    pub n_bytes: u64,
}

/// A directory of blobs; clones share it.
#[derive(Clone, Debug)]
pub struct BlobStore {
    dir: Arc<PathBuf>,
    next: Arc<AtomicU64>,
    /// Blobs that this process wrote, or compared with their digests.
    whole: Arc<Mutex<BTreeSet<[u8; 32]>>>,
}

impl BlobStore {
    /// Opens or creates the store in `dir`, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the directory cannot be used.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, BlobError> {
        let dir = dir.as_ref().to_owned();
        let (unfinished, staged) = (dir.join(UNFINISHED), dir.join(STAGED));
        disk::create_dir_all(&unfinished).map_err(failed(&unfinished, "create"))?;
        disk::create_dir_all(&staged).map_err(failed(&staged, "create"))?;
        disk::sync_dir(crate::parent(&dir)).map_err(failed(&dir, "create"))?;
        disk::sync_dir(&dir).map_err(failed(&dir, "create"))?;
        for entry in std::fs::read_dir(&unfinished).map_err(failed(&unfinished, "read"))? {
            let path = entry.map_err(failed(&unfinished, "read"))?.path();
            disk::remove_file(&path).map_err(failed(&path, "remove"))?;
        }
        Ok(Self::existing(dir))
    }

    /// The store in `dir`, which another process may be writing: nothing is made or removed.
    pub fn existing(dir: impl AsRef<Path>) -> Self {
        Self { dir: Arc::new(dir.as_ref().to_owned()), next: Arc::default(), whole: Arc::default() }
    }

    /// Starts a new blob; it is stored by [`BlobWriter::finish`] and vanishes if dropped before.
    ///
    /// # Errors
    /// [`BlobError::Io`] if no file can be made.
    pub fn writer(&self) -> Result<BlobWriter, BlobError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(UNFINISHED).join(number.to_string());
        let mut options = File::options();
        options.write(true).create_new(true);
        let file = disk::open(&options, &path).map_err(failed(&path, "create"))?;
        Ok(BlobWriter {
            store: self.clone(),
            path,
            file: BufWriter::with_capacity(1 << 16, Output(file)),
            hasher: blake3::Hasher::new(),
            n_bytes: 0,
            staged: false,
            gone: false,
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
        options.read(true).write(true).create(true).truncate(false);
        let mut file = disk::open(&options, &path).map_err(failed(&path, "create"))?;
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
            file: BufWriter::with_capacity(1 << 16, Output(file)),
            hasher,
            n_bytes,
            staged: true,
            gone: false,
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
        disk::remove_file(&path).map_err(failed(&path, "remove"))
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
            self.whole().remove(digest);
            return Err(BlobError::Corrupt { path, digest: *digest });
        }
        self.whole().insert(*digest);
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
        self.whole().remove(digest);
        disk::remove_file(&path).map_err(failed(&path, "remove"))
    }

    /// The digests of all complete blobs, with their sizes, in order.
    ///
    /// # Errors
    /// [`BlobError::Io`] if a folder cannot be read.
    pub fn list(&self) -> Result<Vec<([u8; 32], u64)>, BlobError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&*self.dir).map_err(failed(&self.dir, "read"))? {
            let folder = entry.map_err(failed(&self.dir, "read"))?.path();
            let Some(start) = folder.file_name().and_then(|name| name.to_str()) else { continue };
            if start.len() != 2 {
                continue;
            }
            for entry in std::fs::read_dir(&folder).map_err(failed(&folder, "read"))? {
                let entry = entry.map_err(failed(&folder, "read"))?;
                // Whatever has another name was not put here by a store, and is left alone.
                let name = format!("{start}{}", entry.file_name().to_string_lossy());
                if let (Ok(digest), Ok(about)) = (blake3::Hash::from_hex(&name), entry.metadata()) {
                    found.push((*digest.as_bytes(), about.len()));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes every complete blob that is not in `keep`; what is being written, and what is staged,
    /// stays.  A reader that is open goes on reading.
    ///
    /// A blob that becomes complete meanwhile may be removed: sweep while nobody stores any, or name
    /// it in `keep` before.
    ///
    /// # Errors
    /// [`BlobError::Io`] at the first one that cannot be removed; the next sweep finds it again.
    pub fn sweep(&self, keep: &BTreeSet<[u8; 32]>) -> Result<Swept, BlobError> {
        let mut swept = Swept::default();
        for (digest, n_bytes) in self.list()? {
            if !keep.contains(&digest) && self.remove(&digest)? {
                swept.n_blobs += 1;
                swept.n_bytes += n_bytes;
            }
        }
        Ok(swept)
    }

    /// Opens a blob that is known to be whole: this process wrote it or compared it with its digest, now
    /// if not before.
    ///
    /// # Errors
    /// As [`read_all`](Self::read_all).
    pub fn reader_of_whole(&self, digest: &[u8; 32]) -> Result<BlobReader, BlobError> {
        if !self.whole().contains(digest) {
            self.verify(digest)?;
        }
        self.reader(digest)
    }

    fn whole(&self) -> MutexGuard<'_, BTreeSet<[u8; 32]>> {
        // A set of digests is never half changed.
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
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
    file: BufWriter<Output>,
    hasher: blake3::Hasher,
    n_bytes: u64,
    /// Whether the file stays when the writer is dropped unfinished.
    staged: bool,
    /// Whether it has its name in the store.
    gone: bool,
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
        if let Err(error) = disk::sync(&self.file.get_ref().0) {
            // A failed fsync may have dropped pages that a later one would call written.
            self.staged = false;
            return Err(failed(&self.path, "sync")(error));
        }
        let to = self.store.path(digest);
        let dir = crate::parent(&to);
        if !dir.is_dir() {
            disk::create_dir_all(dir).map_err(failed(dir, "create"))?;
            if let Err(error) = disk::sync_dir(&self.store.dir) {
                // So that the next writer makes it again, and waits until the disk has it.
                let _ = disk::remove_dir(dir);
                return Err(failed(dir, "create")(error));
            }
        }
        // Over an equal blob too: it has the same bytes, or was damaged and is now whole.
        disk::rename(&self.path, &to).map_err(failed(&to, "store"))?;
        self.gone = true;
        disk::sync_dir(dir).map_err(failed(dir, "sync"))?;
        self.store.whole().insert(*digest);
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        if self.staged {
            // What the buffer holds is written when the buffer is dropped; what the disk refuses
            // is sent again.
            return;
        }
        // If it cannot be removed, the next open tries again.
        let _ = disk::remove_file(&self.path);
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
    fn a_sweep_removes_what_nobody_keeps_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let digests: Vec<[u8; 32]> =
            (0..20u8).map(|i| store.put(&vec![i; 100 + usize::from(i)]).unwrap()).collect();
        let mut listed: Vec<([u8; 32], u64)> = digests.iter().copied().zip(100..).collect();
        listed.sort_unstable();
        assert_eq!(store.list().unwrap(), listed);
        let mut writing = store.writer().unwrap();
        writing.write(b"half of ").unwrap();
        store.resume("part").unwrap().write(b"staged").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "somebody's").unwrap();
        let mut reader = store.reader(&digests[0]).unwrap();

        let keep: BTreeSet<[u8; 32]> = digests[15..].iter().copied().chain([[7; 32]]).collect();
        let swept = store.sweep(&keep).unwrap();
        assert_eq!(swept, Swept { n_blobs: 15, n_bytes: (100..115).sum() });
        assert_eq!(store.sweep(&keep).unwrap(), Swept::default());
        assert_eq!(store.list().unwrap().len(), 5);
        digests[15..].iter().for_each(|digest| store.verify(digest).unwrap());

        writing.write(b"a blob").unwrap();
        store.verify(&writing.finish().unwrap()).unwrap();
        assert_eq!(store.staged().unwrap(), [("part".to_owned(), 6)]);
        assert!(dir.path().join("notes.txt").exists());
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, vec![0; 100]);
    }

    #[test]
    fn a_blob_of_another_process_is_compared_with_its_digest_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let digest = BlobStore::open(dir.path()).unwrap().put(b"weights").unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let path = store.path(&digest);
        std::fs::write(&path, b"weightz").unwrap();
        assert!(matches!(store.reader_of_whole(&digest), Err(BlobError::Corrupt { .. })));
        std::fs::write(&path, b"weights").unwrap();
        assert_eq!(store.reader_of_whole(&digest).unwrap().len(), 7);
        store.remove(&digest).unwrap();
        assert!(matches!(store.reader_of_whole(&digest), Err(BlobError::Missing { .. })));
    }

    #[test]
    fn a_look_at_a_store_removes_nothing_of_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let mut writer = store.writer().unwrap();
        writer.write(b"in the making").unwrap();
        let looking = BlobStore::existing(dir.path());
        assert!(looking.list().unwrap().is_empty());
        let digest = writer.finish().unwrap();
        looking.verify(&digest).unwrap();
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
