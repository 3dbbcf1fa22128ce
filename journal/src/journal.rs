//! An append-only file of records, each chained to the one before it by its hash.
//!
//! ```text
//! file   = header frame*
//! header = "COMITYJ\n" version:u32
//! frame  = len:u32 guard:[u8; 4] payload:[u8; len] hash:[u8; 32]
//! hash   = BLAKE3(hash of the frame before ‖ seq:u64 ‖ payload)       seq = 1, 2, 3, ...
//! guard  = first four bytes of BLAKE3(hash of the frame before ‖ seq:u64 ‖ len:u32)
//! ```
//!
//! Integers are little-endian; the hash before the first frame is BLAKE3(header).  The guard
//! tells a crash in the middle of an append (the file ends inside the frame) from a flipped bit
//! in a length, which would otherwise make good records look like a torn end and be cut off.
//!
//! What the chain cannot show by itself is the loss of whole records at the end: compare
//! [`Journal::head`] with what is stored elsewhere (the index, a partner's receipt).

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::{self, Output};

/// Longest payload of one record.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

const MAGIC: &[u8; 8] = b"COMITYJ\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
const PREFIX_BYTES: usize = 8;
const HASH_BYTES: usize = 32;

/// Why a journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("journal {path}: cannot {action}: {source}; {}", crate::disk::advice(.source))]
    Io {
        /// The journal's file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{path} is not a journal of Comity; check the path, the file was left as it is")]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// The file ends before its header does.
    #[error(
        "journal {path} has no beginning yet: its program is just being started for the first time, or the file was \
         emptied; try again, and if it stays so, start the program, which says which"
    )]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
    /// The journal was written by another version of Comity.
    #[error(
        "journal {path} has format {version}, this program reads format 1; use the release that wrote it"
    )]
    Version {
        /// The journal's file.
        path: PathBuf,
        /// Found in its header.
        version: u32,
    },
    /// A record is not what was written.
    #[error(
        "journal {path} is damaged or was altered at record {seq} (byte {offset}); nothing was changed. Keep the file as evidence and restore it from a backup or a replica, then start again"
    )]
    Corrupt {
        /// The journal's file.
        path: PathBuf,
        /// Number of the first record that does not verify.
        seq: u64,
        /// Where its frame starts, in bytes from the start of the file.
        offset: u64,
    },
    /// An earlier append failed, so that the end of the file is unknown.
    #[error(
        "journal {path} refuses further records because an earlier write failed; free space or repair the disk, then restart: complete records are kept"
    )]
    Poisoned {
        /// The journal's file.
        path: PathBuf,
    },
    /// The record is larger than [`PAYLOAD_BYTES_MAX`].
    #[error(
        "a record of {bytes} bytes is larger than the limit of {PAYLOAD_BYTES_MAX}; store it as a blob and journal its digest"
    )]
    TooLarge {
        /// Size of the refused payload.
        bytes: usize,
    },
    /// A value cannot be written as JSON.
    #[error("a record cannot be written as JSON: {0}")]
    Encode(serde_json::Error),
    /// A record verifies but is not what its reader expects.
    #[error(
        "journal record {seq} cannot be used: {reason}; it was probably written by a newer release, use that one"
    )]
    Payload {
        /// The record's number.
        seq: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// One record as it is in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in the journal, from 1.
    pub seq: u64,
    /// What was appended.
    pub payload: Vec<u8>,
    /// The chain's hash up to and including this record.
    pub hash: [u8; 32],
}

impl Record {
    /// The payload of a record that was appended with [`Journal::append_json`].
    ///
    /// # Errors
    /// [`JournalError::Payload`] if it is not JSON of a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, JournalError> {
        serde_json::from_slice(&self.payload).map_err(|error| self.refuse(error))
    }

    /// An error that names this record, for a visitor that cannot use it.
    pub fn refuse(&self, reason: impl std::fmt::Display) -> JournalError {
        JournalError::Payload { seq: self.seq, reason: reason.to_string() }
    }
}

/// What [`verify`] found in a journal that is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Number of the last complete record; 0 if there is none.
    pub seq: u64,
    /// The chain's hash up to that record.
    pub hash: [u8; 32],
    /// Bytes of an unfinished append at the end, which the next open will remove.
    pub torn_bytes: u64,
}

/// An open journal; one process at a time, see [`DirLock`](crate::DirLock).
#[derive(Debug)]
pub struct Journal {
    file: Output,
    path: PathBuf,
    seq: u64,
    hash: [u8; 32],
    recovered_bytes: u64,
    poisoned: bool,
}

impl Journal {
    /// Opens or creates the journal at `path` and returns all its records.
    ///
    /// An append that a crash interrupted is removed; see [`recovered_bytes`](Self::recovered_bytes).
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] if any complete record does not verify; the file is unchanged.
    pub fn open(path: impl AsRef<Path>) -> Result<(Self, Vec<Record>), JournalError> {
        let mut records = Vec::new();
        let journal = Self::open_with(path, |record| {
            records.push(record);
            Ok(())
        })?;
        Ok((journal, records))
    }

    /// Like [`open`](Self::open), but hands over one record at a time: memory does not grow with
    /// the journal.
    ///
    /// # Errors
    /// As [`open`](Self::open), or what `visit` returned; the file is then unchanged.
    pub fn open_with(
        path: impl AsRef<Path>,
        visit: impl FnMut(Record) -> Result<(), JournalError>,
    ) -> Result<Self, JournalError> {
        let path = path.as_ref().to_owned();
        let at = |action| failed(&path, action);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = disk::open(&options, &path).map_err(at("open"))?;
        let scan = match scan(&file, &path, visit)? {
            Some(scan) => scan,
            None => {
                // Empty, or a crash while the header was written.
                disk::set_len(&file, 0).map_err(at("create"))?;
                file.seek(SeekFrom::Start(0)).map_err(at("create"))?;
                let mut output = Output(file);
                output.write_all(&header()).map_err(at("create"))?;
                file = output.0;
                disk::sync(&file).map_err(at("create"))?;
                disk::sync_dir(crate::parent(&path)).map_err(at("create"))?;
                Scan { seq: 0, hash: genesis(), end: HEADER_BYTES as u64, torn_bytes: 0 }
            }
        };
        if scan.torn_bytes > 0 {
            disk::set_len(&file, scan.end).map_err(at("remove an unfinished record"))?;
            disk::sync(&file).map_err(at("remove an unfinished record"))?;
        }
        file.seek(SeekFrom::Start(scan.end)).map_err(at("open"))?;
        let Scan { seq, hash, torn_bytes, .. } = scan;
        let file = Output(file);
        Ok(Self { file, path, seq, hash, recovered_bytes: torn_bytes, poisoned: false })
    }

    /// Appends one record, and returns its number when the disk has it.
    ///
    /// # Errors
    /// [`JournalError::Io`]: whether the record will be there after a restart is then unknown,
    /// and every later append is [`JournalError::Poisoned`].
    pub fn append(&mut self, payload: &[u8]) -> Result<u64, JournalError> {
        self.append_all(&[payload.to_vec()])
    }

    /// Appends several records with one wait for the disk, and returns the last one's number. A crash in
    /// between leaves the first of them, and each that it leaves is whole.
    ///
    /// # Errors
    /// As [`append`](Self::append); of several records too large nothing is written.
    pub fn append_all(&mut self, payloads: &[Vec<u8>]) -> Result<u64, JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned { path: self.path.clone() });
        }
        if let Some(large) = payloads.iter().find(|payload| payload.len() > PAYLOAD_BYTES_MAX) {
            return Err(JournalError::TooLarge { bytes: large.len() });
        }
        let (mut seq, mut hash) = (self.seq, self.hash);
        let mut frames = Vec::new();
        for payload in payloads {
            seq += 1;
            let len = u32::try_from(payload.len()).expect("PAYLOAD_BYTES_MAX is below 2^32");
            let guard = guard(&hash, seq, len);
            hash = chain(&hash, seq, payload);
            frames.reserve(PREFIX_BYTES + payload.len() + HASH_BYTES);
            frames.extend_from_slice(&len.to_le_bytes());
            frames.extend_from_slice(&guard);
            frames.extend_from_slice(payload);
            frames.extend_from_slice(&hash);
        }
        // Poisoned until proven otherwise: a failed fsync may have dropped the dirty pages, so
        // that trying again would report success for data that is lost.
        self.poisoned = true;
        self.file
            .write_all(&frames)
            .and_then(|()| disk::sync_data(&self.file.0))
            .map_err(failed(&self.path, "append"))?;
        self.poisoned = false;
        self.seq = seq;
        self.hash = hash;
        Ok(seq)
    }

    /// [`append_all`](Self::append_all) of values as JSON.
    ///
    /// # Errors
    /// As [`append_all`](Self::append_all), and [`JournalError::Encode`].
    pub fn append_all_json<T: Serialize>(&mut self, values: &[T]) -> Result<u64, JournalError> {
        let payloads = values.iter().map(|value| serde_json::to_vec(value));
        let payloads = payloads.collect::<Result<Vec<_>, _>>().map_err(JournalError::Encode)?;
        self.append_all(&payloads)
    }

    /// Appends `value` as JSON; read it back with [`Record::json`].
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`JournalError::Encode`].
    pub fn append_json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<u64, JournalError> {
        self.append(&serde_json::to_vec(value).map_err(JournalError::Encode)?)
    }

    /// Number of the last record (0 if there is none) and the chain's hash up to it.
    #[must_use]
    pub fn head(&self) -> (u64, [u8; 32]) {
        (self.seq, self.hash)
    }

    /// Bytes of an interrupted append that were removed when the journal was opened.
    #[must_use]
    pub fn recovered_bytes(&self) -> u64 {
        self.recovered_bytes
    }

    /// The journal's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Checks every record of the journal at `path` without changing the file.
///
/// # Errors
/// [`JournalError::Corrupt`] names the first record that does not verify.
pub fn verify(path: impl AsRef<Path>) -> Result<Verified, JournalError> {
    read(path, |_| Ok(()))
}

/// Hands over every record of the journal at `path`, which another process may be writing,
/// without changing the file.
///
/// # Errors
/// [`JournalError::Corrupt`] names the first record that does not verify; or what `visit`
/// returned.
pub fn read(
    path: impl AsRef<Path>,
    visit: impl FnMut(Record) -> Result<(), JournalError>,
) -> Result<Verified, JournalError> {
    let path = path.as_ref();
    let file = File::open(path).map_err(failed(path, "open"))?;
    let scan = scan(&file, path, visit)?
        .ok_or_else(|| JournalError::Unfinished { path: path.to_owned() })?;
    Ok(Verified { seq: scan.seq, hash: scan.hash, torn_bytes: scan.torn_bytes })
}

struct Scan {
    seq: u64,
    hash: [u8; 32],
    /// Where the last complete frame ends.
    end: u64,
    torn_bytes: u64,
}

/// Reads a journal from its start; `None` if not even the header is complete.
fn scan(
    file: &File,
    path: &Path,
    mut visit: impl FnMut(Record) -> Result<(), JournalError>,
) -> Result<Option<Scan>, JournalError> {
    let at = |action| failed(path, action);
    let file_bytes = file.metadata().map_err(at("read"))?.len();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut start = [0; HEADER_BYTES];
    let n_start = usize::try_from(file_bytes).unwrap_or(usize::MAX).min(HEADER_BYTES);
    reader.read_exact(&mut start[..n_start]).map_err(at("read"))?;
    if n_start < HEADER_BYTES {
        let unfinished = header().starts_with(&start[..n_start]) || start == [0; HEADER_BYTES];
        return if unfinished {
            Ok(None)
        } else {
            Err(JournalError::NotAJournal { path: path.to_owned() })
        };
    }
    if start[..8] != *MAGIC {
        return Err(JournalError::NotAJournal { path: path.to_owned() });
    }
    let version = u32::from_le_bytes(start[8..].try_into().expect("the header ends in four bytes"));
    if version != VERSION {
        return Err(JournalError::Version { path: path.to_owned(), version });
    }

    let mut scan = Scan { seq: 0, hash: genesis(), end: HEADER_BYTES as u64, torn_bytes: 0 };
    while scan.end < file_bytes {
        let rest = file_bytes - scan.end;
        let seq = scan.seq + 1;
        let corrupt = || JournalError::Corrupt { path: path.to_owned(), seq, offset: scan.end };
        if rest < PREFIX_BYTES as u64 {
            scan.torn_bytes = rest;
            break;
        }
        let mut prefix = [0; PREFIX_BYTES];
        reader.read_exact(&mut prefix).map_err(at("read"))?;
        let len = u32::from_le_bytes(prefix[..4].try_into().expect("four of eight bytes"));
        if prefix[4..] != guard(&scan.hash, seq, len) {
            // Some file systems extend a file before they write the data: zeros to the end.
            if prefix == [0; PREFIX_BYTES] && only_zeros(&mut reader).map_err(at("read"))? {
                scan.torn_bytes = rest;
                break;
            }
            return Err(corrupt());
        }
        if len as usize > PAYLOAD_BYTES_MAX {
            return Err(corrupt());
        }
        let frame_bytes = (PREFIX_BYTES + HASH_BYTES) as u64 + u64::from(len);
        if frame_bytes > rest {
            scan.torn_bytes = rest;
            break;
        }
        let mut payload = vec![0; len as usize];
        reader.read_exact(&mut payload).map_err(at("read"))?;
        let mut hash = [0; HASH_BYTES];
        reader.read_exact(&mut hash).map_err(at("read"))?;
        if hash != chain(&scan.hash, seq, &payload) {
            if hash == [0; HASH_BYTES] && frame_bytes == rest {
                scan.torn_bytes = rest;
                break;
            }
            return Err(corrupt());
        }
        scan.seq = seq;
        scan.hash = hash;
        scan.end += frame_bytes;
        visit(Record { seq, payload, hash })?;
    }
    Ok(Some(scan))
}

fn only_zeros(reader: &mut impl Read) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(true),
            n if buffer[..n].iter().any(|b| *b != 0) => return Ok(false),
            _ => {}
        }
    }
}

fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..].copy_from_slice(&VERSION.to_le_bytes());
    header
}

fn genesis() -> [u8; 32] {
    *blake3::hash(&header()).as_bytes()
}

fn chain(before: &[u8; 32], seq: u64, payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(&seq.to_le_bytes()).update(payload);
    *hasher.finalize().as_bytes()
}

fn guard(before: &[u8; 32], seq: u64, len: u32) -> [u8; 4] {
    let hash = chain(before, seq, &len.to_le_bytes());
    [hash[0], hash[1], hash[2], hash[3]]
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { path, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small(dir: &Path) -> (PathBuf, Vec<u8>) {
        let path = dir.join("journal");
        let (mut journal, records) = Journal::open(&path).unwrap();
        assert!(records.is_empty());
        assert_eq!(journal.append(b"first").unwrap(), 1);
        assert_eq!(journal.append(b"").unwrap(), 2);
        assert_eq!(journal.append_json(&("third", 3)).unwrap(), 3);
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    }

    #[test]
    fn records_are_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = small(dir.path());
        let (mut journal, records) = Journal::open(&path).unwrap();
        assert_eq!(records.len(), 3);
        assert_eq!(records[0].payload, b"first");
        assert_eq!(records[2].json::<(String, u8)>().unwrap(), ("third".to_owned(), 3));
        assert_eq!(journal.head(), (3, records[2].hash));
        assert_eq!(journal.append(b"fourth").unwrap(), 4);
        assert_eq!(verify(&path).unwrap().seq, 4);
        assert!(records[0].json::<u8>().unwrap_err().to_string().contains("record 1"));
    }

    #[test]
    fn several_records_are_appended_as_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = small(dir.path());
        let other = dir.path().join("other");
        let (mut journal, _) = Journal::open(&other).unwrap();
        let third = serde_json::to_vec(&("third", 3)).unwrap();
        let all = [b"first".to_vec(), Vec::new(), third];
        assert_eq!(journal.append_all(&all).unwrap(), 3);
        assert_eq!(std::fs::read(&other).unwrap(), bytes);
        let large = vec![0; PAYLOAD_BYTES_MAX + 1];
        let error = journal.append_all(&[b"fourth".to_vec(), large]).unwrap_err();
        assert!(matches!(error, JournalError::TooLarge { .. }));
        assert_eq!(std::fs::read(&other).unwrap(), bytes, "nothing of it is written");
        assert_eq!(journal.append_all(&[]).unwrap(), 3);
        assert_eq!(verify(&path).unwrap(), verify(&other).unwrap());
    }

    #[test]
    fn torn_last_frame_is_cut_off_at_every_length() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = small(dir.path());
        let mut ends = vec![HEADER_BYTES];
        for len in [5, 0, 11] {
            ends.push(ends.last().unwrap() + PREFIX_BYTES + len + HASH_BYTES);
        }
        assert_eq!(*ends.last().unwrap(), bytes.len());
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let (mut journal, records) = Journal::open(&path).unwrap();
            let complete = ends[1..].iter().filter(|end| **end <= cut).count();
            assert_eq!(records.len(), complete, "cut at {cut}");
            let torn = if cut < HEADER_BYTES { 0 } else { cut - ends[complete] };
            assert_eq!(journal.recovered_bytes(), torn as u64);
            assert_eq!(journal.append(b"more").unwrap(), complete as u64 + 1);
            drop(journal);
            assert_eq!(Journal::open(&path).unwrap().1.len(), complete + 1);
        }
    }

    #[test]
    fn tail_of_zeros_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = small(dir.path());
        for zeros in [1, 8, 40, 5000] {
            let mut longer = bytes.clone();
            longer.resize(bytes.len() + zeros, 0);
            std::fs::write(&path, &longer).unwrap();
            let (journal, records) = Journal::open(&path).unwrap();
            assert_eq!((records.len(), journal.recovered_bytes()), (3, zeros as u64));
        }
    }

    #[test]
    fn every_bit_flip_is_detected_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = small(dir.path());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            assert!(verify(&path).is_err(), "bit {bit}");
            assert!(Journal::open(&path).is_err(), "bit {bit}");
            assert_eq!(std::fs::read(&path).unwrap(), flipped);
        }
    }

    #[test]
    fn reordered_removed_and_repeated_records_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for payload in [b"aa", b"bb", b"cc"] {
            journal.append(payload).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        let (header, frames) = bytes.split_at(HEADER_BYTES);
        let frames: Vec<_> = frames.chunks(PREFIX_BYTES + 2 + HASH_BYTES).collect();
        for order in [&[1, 0, 2][..], &[0, 2, 1], &[0, 2], &[1, 2], &[0, 0, 1, 2], &[2, 1, 0]] {
            let mut altered = header.to_vec();
            order.iter().for_each(|i| altered.extend_from_slice(frames[*i]));
            std::fs::write(&path, altered).unwrap();
            let error = Journal::open(&path).unwrap_err();
            assert!(matches!(error, JournalError::Corrupt { .. }), "{order:?}: {error}");
        }
    }

    #[test]
    fn corruption_names_file_record_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut bytes) = small(dir.path());
        bytes[HEADER_BYTES + PREFIX_BYTES + 5 + HASH_BYTES + 2] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = Journal::open(&path).unwrap_err();
        let JournalError::Corrupt { seq: 2, offset: 57, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.contains("journal") && text.contains("backup"), "{text}");
    }

    #[test]
    fn other_files_are_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        for text in ["hi", "a text that is longer than a header"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Journal::open(&path), Err(JournalError::NotAJournal { .. })));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let mut newer = header();
        newer[8] = 2;
        std::fs::write(&path, newer).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Version { version: 2, .. })));
    }

    #[test]
    fn failed_write_poisons_the_journal() {
        let mut journal = Journal {
            file: Output(OpenOptions::new().write(true).open("/dev/full").unwrap()),
            path: "/dev/full".into(),
            seq: 0,
            hash: genesis(),
            recovered_bytes: 0,
            poisoned: false,
        };
        assert!(matches!(journal.append(b"x"), Err(JournalError::Io { .. })));
        assert!(matches!(journal.append(b"x"), Err(JournalError::Poisoned { .. })));
        assert_eq!(journal.head().0, 0);
    }

    #[test]
    fn oversized_record_is_refused_without_poison() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path().join("journal")).unwrap();
        let payload = vec![0; PAYLOAD_BYTES_MAX + 1];
        assert!(matches!(journal.append(&payload), Err(JournalError::TooLarge { .. })));
        assert_eq!(journal.append(b"x").unwrap(), 1);
    }

    #[test]
    fn a_visitor_that_refuses_stops_the_open() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = small(dir.path());
        let error = Journal::open_with(&path, |record| Err(record.refuse("no"))).unwrap_err();
        assert!(matches!(error, JournalError::Payload { seq: 1, .. }));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn journals_round_trip(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            let (mut journal, _) = Journal::open(&path).unwrap();
            for payload in &payloads {
                journal.append(payload).unwrap();
            }
            let head = journal.head();
            drop(journal);
            let (journal, records) = Journal::open(&path).unwrap();
            prop_assert_eq!(journal.head(), head);
            let read: Vec<_> = records.into_iter().map(|r| r.payload).collect();
            prop_assert_eq!(read, payloads);
        }
    }
}
