//! Derived state in sled: quick to look up, never the only copy of anything.
//!
//! sled 0.34.7 reopens silently at an older state after a flipped bit or a truncation, can panic
//! while doing so, and its `flush` is no fsync on Linux.  So each value carries its own hash,
//! and [`Index::mark_applied`] writes the journal's head together with a sum over all values.
//! An index in which head or sum is not exactly as marked is moved aside and starts empty: the
//! caller folds the journal again, which recovery does anyway.
//!
//! Nobody waits for the index's own disk work: a thread flushes what was marked, many marks at once
//! where they come fast.  A mark follows its record's fsync, so on the disk it is never ahead of the
//! journal; after a crash it may be [`FLUSH_PAUSE`] behind, which costs a rebuild.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk;

/// Longest value, as JSON; what is larger belongs into a blob.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Most directories that are kept after having been moved aside; the oldest goes first.
pub const N_SET_ASIDE_MAX: usize = 3;

/// Time between two flushes, so that steps in quick succession share one; also how far the disk's copy
/// may be behind.
pub const FLUSH_PAUSE: Duration = Duration::from_millis(100);

const VERSION: u8 = 1;
const CACHE_BYTES: u64 = 16 << 20;
/// How long the database's lock is waited for, and between two looks; see `open_db`.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const MARK_TREE: &str = "__comity";
const MARK_KEY: &str = "applied";
/// The tree that sled makes by itself.
const SLED_TREE: &[u8] = b"__sled__default";

/// Why the index did not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// sled refused.
    #[error(
        "index: {0}; stop the program and remove the index directory, it is rebuilt from the journal"
    )]
    Sled(#[from] sled::Error),
    /// The journal lacks records that were durable once.
    #[error(
        "the journal ends at record {journal}, but record {index} was applied before: it was cut, \
         edited, or restored from an older copy, and what happened since would be forgotten. Put back \
         the newest copy of the whole folder; only if there is none, and whoever relies on the \
         records knows it, remove {} and start again", dir.display()
    )]
    JournalOlder {
        /// The last record applied.
        index: u64,
        /// The last record there is.
        journal: u64,
        /// The index.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("index {path}: {source}; {}", crate::disk::advice(.source))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A value is not what was written.
    #[error(
        "index value {tree}/{key} is damaged; restart, and the index is rebuilt from the journal"
    )]
    Corrupt {
        /// Its tree.
        tree: String,
        /// Its key.
        key: String,
    },
    /// The value is larger than [`VALUE_BYTES_MAX`].
    #[error(
        "index value {tree}/{key} has {bytes} bytes, the limit is {VALUE_BYTES_MAX}; store it as a blob"
    )]
    TooLarge {
        /// Its tree.
        tree: String,
        /// Its key.
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// A value is not JSON of the type that was asked for.
    #[error(
        "index value {tree}/{key}: {source}; remove the index directory, it is rebuilt from the journal"
    )]
    Json {
        /// Its tree.
        tree: String,
        /// Its key.
        key: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Whether an index that was opened can be used as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// It is empty: fold the whole journal into it.
    Fresh,
    /// It holds exactly what was marked at the journal's head.
    Current,
}

/// An index that did not match the journal and was moved out of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What was wrong, for the log.
    pub reason: String,
}

/// The index; shared by reference between threads.
#[derive(Debug)]
pub struct Index {
    db: sled::Db,
    dir: PathBuf,
    set_aside: Option<SetAside>,
    content: Mutex<Content>,
    flusher: Flusher,
}

#[derive(Clone, Copy, Debug, Default)]
struct Content {
    /// XOR of the hashes of all values: adding, replacing and removing one is cheap.
    sum: [u8; 32],
    /// Journal record up to which the values are known to be applied.
    seq: u64,
}

impl Index {
    /// Opens the index in `dir` and compares it with the journal's `head`.
    ///
    /// If it is missing, behind, damaged, or makes sled panic, it is moved aside (see
    /// [`set_aside`](Self::set_aside)) and an empty one takes its place.
    ///
    /// # Errors
    /// [`IndexError::JournalOlder`] if the index is intact and has seen records that the journal does
    /// not hold; [`IndexError`] if not even an empty index can be made.
    pub fn open(
        dir: impl AsRef<Path>,
        head: (u64, [u8; 32]),
    ) -> Result<(Self, IndexState), IndexError> {
        let dir = dir.as_ref().to_owned();
        let mut set_aside = None;
        if dir.exists() {
            match open_checked(&dir, head) {
                Ok((db, sum)) => {
                    let content = Mutex::new(Content { sum, seq: head.0 });
                    let flusher = Flusher::start(&db, &dir)?;
                    let index = Self { db, dir, set_aside, content, flusher };
                    return Ok((index, IndexState::Current));
                }
                Err(Unusable::JournalOlder { index }) => {
                    return Err(IndexError::JournalOlder { index, journal: head.0, dir });
                }
                Err(Unusable::Content { reason, suffix }) => {
                    let path = move_aside(&dir, suffix)?;
                    set_aside = Some(SetAside { path, reason });
                }
            }
        }
        disk::index().map_err(failed(&dir))?;
        let db = config(&dir).open()?;
        disk::sync_dir(crate::parent(&dir)).map_err(failed(&dir))?;
        let content = Mutex::new(Content::default());
        let flusher = Flusher::start(&db, &dir)?;
        Ok((Self { db, dir, set_aside, content, flusher }, IndexState::Fresh))
    }

    /// The earlier index, if it was moved aside by [`open`](Self::open).
    #[must_use]
    pub fn set_aside(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// Stores `value` at `key` of `tree`, as JSON.
    ///
    /// # Errors
    /// [`IndexError::TooLarge`] above [`VALUE_BYTES_MAX`].
    ///
    /// # Panics
    /// If `tree` is a name that starts with `__`, which are reserved.
    pub fn put_json<T: Serialize + ?Sized>(
        &self,
        tree: &str,
        key: &str,
        value: &T,
    ) -> Result<(), IndexError> {
        assert!(!tree.starts_with("__"), "tree names with __ are reserved");
        let payload = serde_json::to_vec(value).map_err(json_error(tree, key))?;
        if payload.len() > VALUE_BYTES_MAX {
            let bytes = payload.len();
            return Err(IndexError::TooLarge { tree: tree.to_owned(), key: key.to_owned(), bytes });
        }
        disk::index().map_err(failed(&self.dir))?;
        // One lock over both: the sum must change in the order in which the values do.
        let mut content = self.content();
        let wrapped = wrap(tree, key, content.seq, &payload);
        content.add(&wrapped);
        if let Some(old) = self.db.open_tree(tree)?.insert(key, wrapped)? {
            content.add(&old);
        }
        Ok(())
    }

    /// The value at `key` of `tree`, if there is one.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`] if it is not what was stored.
    pub fn get_json<T: DeserializeOwned>(
        &self,
        tree: &str,
        key: &str,
    ) -> Result<Option<T>, IndexError> {
        self.db.open_tree(tree)?.get(key)?.map(|value| from_wrapped(tree, key, &value)).transpose()
    }

    /// All keys and values of `tree`, in the order of the keys.
    ///
    /// # Errors
    /// As [`get_json`](Self::get_json).
    pub fn scan_json<T: DeserializeOwned>(
        &self,
        tree: &str,
    ) -> Result<Vec<(String, T)>, IndexError> {
        let mut entries = Vec::new();
        for entry in &self.db.open_tree(tree)? {
            let (key, value) = entry?;
            let key = String::from_utf8_lossy(&key).into_owned();
            let value = from_wrapped(tree, &key, &value)?;
            entries.push((key, value));
        }
        Ok(entries)
    }

    /// Removes the value at `key` of `tree`; returns whether it was there.
    ///
    /// # Errors
    /// [`IndexError::Sled`] if sled refuses.
    pub fn delete(&self, tree: &str, key: &str) -> Result<bool, IndexError> {
        disk::index().map_err(failed(&self.dir))?;
        let mut content = self.content();
        let old = self.db.open_tree(tree)?.remove(key)?;
        if let Some(old) = &old {
            content.add(old);
        }
        Ok(old.is_some())
    }

    /// Notes that the journal is applied up to record `seq` with chain hash `hash`, which is on the
    /// disk; the note itself gets there within [`FLUSH_PAUSE`], and before the index is dropped.
    ///
    /// # Errors
    /// [`IndexError`] if it, or a mark before it, cannot be written; the index is then rebuilt at the next
    /// start.
    pub fn mark_applied(&self, seq: u64, hash: [u8; 32]) -> Result<(), IndexError> {
        disk::index().map_err(failed(&self.dir))?;
        let mut content = self.content();
        content.seq = seq;
        let payload = [hash, content.sum].concat();
        let mark = wrap(MARK_TREE, MARK_KEY, seq, &payload);
        self.db.open_tree(MARK_TREE)?.insert(MARK_KEY, mark)?;
        self.flusher.wake()
    }

    /// Waits until the last mark is on the disk: from then on a journal that lacks a record up to it is
    /// [`IndexError::JournalOlder`].
    ///
    /// # Errors
    /// [`IndexError`] if it cannot be written.
    pub fn flush(&self) -> Result<(), IndexError> {
        flush(&self.db, &self.dir.join("db"))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // A panic inside sled while the lock was held leaves a wrong sum at worst, and a wrong
        // sum leads to a rebuild.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn add(&mut self, wrapped: &[u8]) {
        if let Some(hash) = wrapped.last_chunk::<32>() {
            self.sum.iter_mut().zip(hash).for_each(|(sum, byte)| *sum ^= byte);
        }
    }
}

/// The thread that brings marks to the disk.
#[derive(Debug)]
struct Flusher {
    work: Arc<(Mutex<Work>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is to do, and what became of it.
#[derive(Debug, Default)]
struct Work {
    marked: bool,
    stopping: bool,
    failure: Option<IndexError>,
}

impl Flusher {
    fn start(db: &sled::Db, dir: &Path) -> Result<Self, IndexError> {
        let work = Arc::<(Mutex<Work>, Condvar)>::default();
        let (of_thread, db, file) = (Arc::clone(&work), db.clone(), dir.join("db"));
        let thread = std::thread::Builder::new()
            .name("index-flush".to_owned())
            .spawn(move || flush_when_marked(&of_thread, &db, &file))
            .map_err(failed(dir))?;
        Ok(Self { work, thread: Some(thread) })
    }

    /// Has everything so far flushed soon; returns what went wrong before.
    fn wake(&self) -> Result<(), IndexError> {
        let (work, news) = &*self.work;
        let mut work = lock(work);
        work.marked = true;
        news.notify_one();
        work.failure.take().map_or(Ok(()), Err)
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let (work, news) = &*self.work;
        lock(work).stopping = true;
        news.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic inside sled leaves an index that is rebuilt.
            let _ = thread.join();
        }
    }
}

/// Flushes after every mark, but not more often than once in [`FLUSH_PAUSE`], until told to stop.
fn flush_when_marked(shared: &(Mutex<Work>, Condvar), db: &sled::Db, file: &Path) {
    let (work, news) = shared;
    let idle = |work: &mut Work| !work.marked && !work.stopping;
    let mut guard = lock(work);
    loop {
        guard = news.wait_while(guard, idle).unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut guard.marked) {
            return;
        }
        drop(guard);
        let flushed = flush(db, file);
        guard = lock(work);
        if let Err(error) = flushed {
            guard.failure = Some(error);
        }
        let rest = news.wait_timeout_while(guard, FLUSH_PAUSE, |work| !work.stopping);
        guard = rest.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Waits until everything so far is on the disk.
fn flush(db: &sled::Db, file: &Path) -> Result<(), IndexError> {
    disk::index().map_err(failed(file))?;
    db.flush()?;
    // sled's flush is sync_file_range, which promises nothing after a power failure.
    File::open(file).and_then(|db| disk::sync(&db)).map_err(failed(file))
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Unusable {
    /// It is to be moved aside.
    Content { reason: String, suffix: &'static str },
    /// It is fine, and the journal is not.
    JournalOlder { index: u64 },
}

impl Unusable {
    fn corrupt(reason: impl std::fmt::Display) -> Self {
        Self::Content { reason: reason.to_string(), suffix: "corrupt" }
    }
}

fn config(dir: &Path) -> sled::Config {
    sled::Config::new()
        .path(dir)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
}

/// Opens `dir` and reads everything in it, in a thread of its own that may panic.
fn open_checked(dir: &Path, head: (u64, [u8; 32])) -> Result<(sled::Db, [u8; 32]), Unusable> {
    let dir = dir.to_owned();
    std::thread::Builder::new()
        .name("index-open".to_owned())
        .spawn(move || {
            let db = open_db(&dir).map_err(Unusable::corrupt)?;
            let sum = check(&db, head)?;
            Ok((db, sum))
        })
        .map_err(Unusable::corrupt)?
        .join()
        .unwrap_or_else(|_| Err(Unusable::corrupt("sled panicked while opening it")))
}

/// Opens the database, and waits for its lock: sled gives it up on a thread of its own, some time after the last
/// handle is gone, and a child process that was just started may hold it for an instant.
fn open_db(dir: &Path) -> sled::Result<sled::Db> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match config(dir).open() {
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && Instant::now() < end =>
            {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

fn check(db: &sled::Db, head: (u64, [u8; 32])) -> Result<[u8; 32], Unusable> {
    let mut content = Content::default();
    let mut mark = None;
    let mut trees = BTreeMap::new();
    for name in db.tree_names() {
        trees.insert(name.to_vec(), db.open_tree(&name).map_err(Unusable::corrupt)?);
    }
    for (name, tree) in trees {
        let name = String::from_utf8_lossy(&name).into_owned();
        for entry in &tree {
            let (key, value) = entry.map_err(Unusable::corrupt)?;
            let key = String::from_utf8_lossy(&key).into_owned();
            let (seq, payload) = unwrap(&name, &key, &value).map_err(Unusable::corrupt)?;
            if name == MARK_TREE {
                mark = Some((seq, payload.to_vec()));
            } else if name.as_bytes() != SLED_TREE {
                content.add(&value);
            }
        }
    }
    let Some((seq, marked)) = mark else {
        return Err(Unusable::corrupt("it does not say up to where the journal was applied"));
    };
    // A mark is sealed by its hash, so an intact one proves that its record was durable.
    let other_record = seq == head.0 && !marked.starts_with(&head.1);
    if seq > head.0 || other_record {
        return Err(Unusable::JournalOlder { index: seq });
    }
    if seq != head.0 {
        let reason = format!("it is at journal record {seq}, the journal at {}", head.0);
        return Err(Unusable::Content { reason, suffix: "behind" });
    }
    if marked != [head.1, content.sum].concat() {
        return Err(Unusable::corrupt("its contents are not those of the journal's head"));
    }
    Ok(content.sum)
}

/// Renames `dir` to `dir.SUFFIX-N` and removes the oldest such directories beyond the limit.
fn move_aside(dir: &Path, suffix: &str) -> Result<PathBuf, IndexError> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let parent = crate::parent(dir);
    let mut earlier = BTreeMap::new();
    for entry in std::fs::read_dir(parent).map_err(failed(parent))? {
        let path = entry.map_err(failed(parent))?.path();
        let number = path
            .file_name()
            .and_then(|n| n.to_str()?.strip_prefix(&name)?.strip_prefix('.'))
            .and_then(|n| n.strip_prefix("corrupt-").or_else(|| n.strip_prefix("behind-")))
            .and_then(|n| n.parse::<u64>().ok());
        if let Some(number) = number {
            earlier.insert(number, path);
        }
    }
    let number = earlier.last_key_value().map_or(1, |(last, _)| last + 1);
    let to = parent.join(format!("{name}.{suffix}-{number}"));
    disk::rename(dir, &to).map_err(failed(dir))?;
    while earlier.len() >= N_SET_ASIDE_MAX {
        let Some((_, oldest)) = earlier.pop_first() else { break };
        disk::remove_dir_all(&oldest).map_err(failed(&oldest))?;
    }
    disk::sync_dir(parent).map_err(failed(parent))?;
    Ok(to)
}

/// version ‖ seq ‖ payload ‖ BLAKE3 over all of it and where it is stored.
fn wrap(tree: &str, key: &str, seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(9 + payload.len() + 32);
    value.push(VERSION);
    value.extend_from_slice(&seq.to_le_bytes());
    value.extend_from_slice(payload);
    let hash = hash(tree, key, &value);
    value.extend_from_slice(&hash);
    value
}

fn unwrap<'a>(tree: &str, key: &str, value: &'a [u8]) -> Result<(u64, &'a [u8]), IndexError> {
    let parts = value.split_last_chunk::<32>().and_then(|(body, stored)| {
        let (&VERSION, rest) = body.split_first()? else { return None };
        let (seq, payload) = rest.split_first_chunk::<8>()?;
        (hash(tree, key, body) == *stored).then_some((u64::from_le_bytes(*seq), payload))
    });
    parts.ok_or_else(|| IndexError::Corrupt { tree: tree.to_owned(), key: key.to_owned() })
}

fn from_wrapped<T: DeserializeOwned>(tree: &str, key: &str, value: &[u8]) -> Result<T, IndexError> {
    let (_, payload) = unwrap(tree, key, value)?;
    serde_json::from_slice(payload).map_err(json_error(tree, key))
}

fn hash(tree: &str, key: &str, body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [tree.as_bytes(), key.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    *hasher.update(body).finalize().as_bytes()
}

fn json_error(tree: &str, key: &str) -> impl FnOnce(serde_json::Error) -> IndexError {
    let (tree, key) = (tree.to_owned(), key.to_owned());
    move |source| IndexError::Json { tree, key, source }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> IndexError {
    let path = path.to_owned();
    move |source| IndexError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: (u64, [u8; 32]) = (3, [7; 32]);

    fn filled(dir: &Path) {
        let (index, state) = Index::open(dir, HEAD).unwrap();
        assert_eq!(state, IndexState::Fresh);
        for i in 0..50u32 {
            index.put_json("rounds", &format!("{i:03}"), &vec![i; 40]).unwrap();
        }
        index.put_json("rounds", "000", "replaced").unwrap();
        assert!(index.delete("rounds", "049").unwrap() && !index.delete("rounds", "x").unwrap());
        index.mark_applied(HEAD.0, HEAD.1).unwrap();
    }

    #[test]
    fn marked_index_is_current_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("index");
        filled(&dir);
        let (index, state) = Index::open(&dir, HEAD).unwrap();
        assert_eq!((state, index.set_aside()), (IndexState::Current, None));
        assert_eq!(index.get_json::<String>("rounds", "000").unwrap().unwrap(), "replaced");
        assert_eq!(index.get_json::<Vec<u32>>("rounds", "049").unwrap(), None);
        index.delete("rounds", "000").unwrap();
        let all = index.scan_json::<Vec<u32>>("rounds").unwrap();
        assert_eq!(all.len(), 48);
        assert_eq!(all[0], ("001".to_owned(), vec![1; 40]));
    }

    #[test]
    fn index_that_is_behind_is_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("index");
        filled(&dir);
        let (index, state) = Index::open(&dir, (4, [7; 32])).unwrap();
        assert_eq!(state, IndexState::Fresh);
        assert_eq!(index.get_json::<String>("rounds", "000").unwrap(), None);
        assert!(index.set_aside().unwrap().path.is_dir());
    }

    #[test]
    fn journal_that_lacks_what_was_applied_is_refused_until_the_index_is_removed() {
        for head in [(2, [7; 32]), (3, [8; 32]), (0, [0; 32])] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("index");
            filled(&dir);
            for _ in 0..2 {
                let error = Index::open(&dir, head).unwrap_err();
                assert!(matches!(error, IndexError::JournalOlder { index: 3, .. }), "{error}");
                assert!(error.to_string().contains("restored from an older copy"), "{error}");
            }
            assert_eq!(Index::open(&dir, HEAD).unwrap().1, IndexState::Current);
            std::fs::remove_dir_all(&dir).unwrap();
            assert_eq!(Index::open(&dir, head).unwrap().1, IndexState::Fresh);
        }
    }

    #[test]
    fn change_after_the_mark_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("index");
        filled(&dir);
        let (index, _) = Index::open(&dir, HEAD).unwrap();
        index.put_json("rounds", "007", "half of a record").unwrap();
        index.db.flush().unwrap();
        drop(index);
        assert_eq!(Index::open(&dir, HEAD).unwrap().1, IndexState::Fresh);
    }

    #[test]
    fn flipped_bytes_never_show_in_a_current_index() {
        let origin = tempfile::tempdir().unwrap();
        filled(&origin.path().join("index"));
        let db = std::fs::read(origin.path().join("index/db")).unwrap();
        let conf = std::fs::read(origin.path().join("index/conf")).unwrap();
        let used = db.iter().rposition(|b| *b != 0).unwrap() + 1;
        let (mut n_fresh, mut n_current) = (0, 0);
        for case in 0..40 {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("index");
            std::fs::create_dir(&dir).unwrap();
            let mut flipped = db.clone();
            flipped[case * used / 40] ^= 0x10;
            std::fs::write(dir.join("db"), flipped).unwrap();
            std::fs::write(dir.join("conf"), &conf).unwrap();
            let (index, state) = Index::open(&dir, HEAD).unwrap();
            match state {
                IndexState::Fresh => {
                    n_fresh += 1;
                    index.put_json("rounds", "000", "again").unwrap();
                }
                // The byte did not matter: then nothing at all may be missing.
                IndexState::Current => {
                    n_current += 1;
                    index.delete("rounds", "000").unwrap();
                    assert_eq!(index.scan_json::<Vec<u32>>("rounds").unwrap().len(), 48);
                }
            }
        }
        assert!(n_fresh > 0, "{n_fresh} rebuilt, {n_current} unharmed");
    }

    #[test]
    fn at_most_three_directories_are_kept_aside() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("index");
        for seq in 0..6 {
            let (index, _) = Index::open(&dir, (seq, [0; 32])).unwrap();
            index.mark_applied(seq, [0; 32]).unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(parent.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["index", "index.behind-3", "index.behind-4", "index.behind-5"]);
    }

    /// Asks again and again, for ten seconds at most.
    fn soon<T>(mut ask: impl FnMut() -> Option<T>) -> T {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = ask() {
                return found;
            }
            assert!(std::time::Instant::now() < end, "it did not happen");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_mark_reaches_the_disk_though_nobody_waits_for_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("index");
        let (index, _) = Index::open(&dir, (0, [0; 32])).unwrap();
        for seq in 1..=HEAD.0 {
            index.put_json("rounds", "007", &seq).unwrap();
            index.mark_applied(seq, HEAD.1).unwrap();
        }
        // What a crash would leave, while the index is still open.
        let left = |n: usize| {
            let copy = parent.path().join(format!("left-{n}"));
            std::fs::create_dir(&copy).unwrap();
            for name in ["db", "conf"] {
                std::fs::copy(dir.join(name), copy.join(name)).unwrap();
            }
            let (found, state) = Index::open(&copy, HEAD).unwrap();
            (state == IndexState::Current).then(|| found.get_json::<u64>("rounds", "007").unwrap())
        };
        let mut n = 0;
        let value = soon(|| {
            n += 1;
            left(n)
        });
        assert_eq!(value, Some(HEAD.0));
    }

    #[test]
    fn a_flush_that_failed_is_told_at_a_later_mark() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("index");
        let (index, _) = Index::open(&dir, HEAD).unwrap();
        index.mark_applied(HEAD.0, HEAD.1).unwrap();
        std::fs::remove_file(dir.join("db")).unwrap();
        let error = soon(|| index.mark_applied(HEAD.0, HEAD.1).err());
        assert!(matches!(error, IndexError::Io { .. }), "{error}");
    }

    #[test]
    fn large_value_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(dir.path().join("index"), HEAD).unwrap();
        let value = "x".repeat(VALUE_BYTES_MAX);
        assert!(matches!(index.put_json("t", "k", &value), Err(IndexError::TooLarge { .. })));
    }
}
