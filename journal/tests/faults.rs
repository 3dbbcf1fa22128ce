//! The n-th call to the disk fails, for every n that there is: what was acknowledged stays, what failed is told
//! with its path and what to do, and the next start is clean.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use comity_journal::{BlobError, BlobStore, DirLock, Index, IndexState, Journal, JournalError};
use fail::FailScenario;

/// Lets each call to the disk that `work` makes fail once, in each way, and hands `check` the folder with what
/// was acknowledged until then. Returns how many calls there are. `told`: `work` itself hears of each fault.
fn every_fault<A: Default>(
    told: bool,
    work: impl Fn(&Path, &mut A) -> Result<(), String>,
    check: impl Fn(&Path, A, &str),
) -> u32 {
    // One lock for all tests of this process: failpoints are the process's.
    let scenario = FailScenario::setup();
    let counter = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&counter);
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    fail::cfg_callback("disk::any", count).unwrap();
    let dir = tempfile::tempdir().unwrap();
    work(dir.path(), &mut A::default()).unwrap();
    fail::remove("disk::any");
    let n_calls = counter.load(Ordering::Relaxed);
    for action in ["EIO", "ENOSPC", "short"] {
        for n in 1..=n_calls {
            let dir = tempfile::tempdir().unwrap();
            let mut acknowledged = A::default();
            fail::cfg("disk::any", &format!("{}*off->1*return({action})", n - 1)).unwrap();
            let outcome = work(dir.path(), &mut acknowledged);
            fail::remove("disk::any");
            let context = format!("call {n}, {action}");
            assert!(outcome.is_err() || !told, "{context}: nobody was told");
            if let Err(error) = outcome {
                let path = dir.path().to_str().unwrap();
                let fix = if action == "EIO" { "check the disk" } else { "make room" };
                assert!(error.contains(path) && error.contains(fix), "{context}: {error}");
            }
            check(dir.path(), acknowledged, &context);
        }
    }
    scenario.teardown();
    n_calls
}

#[test]
fn a_journal_keeps_every_acknowledged_record_whichever_call_fails() {
    let append = |journal: &mut Journal, payload: &str, done: &mut Vec<String>| {
        match journal.append(payload.as_bytes()) {
            Ok(_) => done.push(payload.to_owned()),
            Err(error) => {
                // Whatever was left on the disk, nothing more is written behind it.
                let again = journal.append(b"more").unwrap_err();
                assert!(matches!(again, JournalError::Poisoned { .. }), "{again}");
                return Err(error.to_string());
            }
        }
        Ok(())
    };
    let n_calls = every_fault(
        true,
        |dir, done: &mut Vec<String>| {
            let path = dir.join("journal.log");
            for start in 0..2 {
                let _lock = DirLock::acquire(dir).map_err(|e| e.to_string())?;
                let (mut journal, _) = Journal::open(&path).map_err(|e| e.to_string())?;
                for i in 0..3 {
                    append(&mut journal, &format!("record {start}.{i}"), done)?;
                }
                drop(journal);
                // An append that a crash cut off: the next open has to cut the file.
                let whole = std::fs::read(&path).unwrap();
                std::fs::write(&path, [&whole[..], &[1, 2, 3]].concat()).unwrap();
            }
            Ok(())
        },
        |dir, done, context| {
            let _lock = DirLock::acquire(dir).unwrap();
            let path = dir.join("journal.log");
            let (mut journal, records) = Journal::open(&path).unwrap();
            let found: Vec<String> =
                records.iter().map(|r| String::from_utf8(r.payload.clone()).unwrap()).collect();
            // The one that failed may be there: nobody was told of it.
            assert!(
                found.starts_with(&done) && found.len() <= done.len() + 1,
                "{context}: {found:?}"
            );
            journal.append(b"after").unwrap();
            assert_eq!(comity_journal::verify(&path).unwrap().seq, found.len() as u64 + 1);
        },
    );
    assert!(n_calls > 20, "{n_calls} calls");
}

#[test]
fn a_blob_store_keeps_every_acknowledged_blob_whichever_call_fails() {
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
    let n_calls = every_fault(
        true,
        |dir, done: &mut Vec<[u8; 32]>| {
            let told = |error: BlobError| error.to_string();
            let store = BlobStore::open(dir.join("blobs")).map_err(told)?;
            for i in 0..3u8 {
                done.push(store.put(&[i; 10]).map_err(told)?);
            }
            let mut writer = store.writer().map_err(told)?;
            for piece in bytes.chunks(70_000) {
                writer.write(piece).map_err(told)?;
            }
            done.push(writer.finish().map_err(told)?);
            store.resume("part").map_err(told)?.write(&bytes[1..200_000]).map_err(told)?;
            let mut writer = store.resume("part").map_err(told)?;
            // A buffer that could not be written when the first writer was dropped is missing here.
            let at = 1 + writer.len() as usize;
            writer.write(&bytes[at..]).map_err(told)?;
            writer.finish_expecting(*blake3::hash(&bytes[1..]).as_bytes()).map_err(told)?;
            done.push(*blake3::hash(&bytes[1..]).as_bytes());
            let gone = done.remove(0);
            store.remove(&gone).map_err(told)?;
            let gone = done.remove(0);
            store.sweep(&done.iter().copied().collect()).map_err(told)?;
            assert!(!store.contains(&gone));
            Ok(())
        },
        |dir, done, context| {
            let store = BlobStore::open(dir.join("blobs")).unwrap();
            for digest in &done {
                store.verify(digest).unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            for (digest, _) in store.list().unwrap() {
                store.verify(&digest).unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            let unfinished = std::fs::read_dir(dir.join("blobs/unfinished")).unwrap();
            assert_eq!(unfinished.count(), 0, "{context}");
            let mut writer = store.resume("part").unwrap();
            let at = 1 + writer.len() as usize;
            writer.write(&bytes[at..]).unwrap();
            writer.finish_expecting(*blake3::hash(&bytes[1..]).as_bytes()).unwrap();
        },
    );
    assert!(n_calls > 40, "{n_calls} calls");
}

#[test]
fn a_part_whose_sync_failed_is_begun_anew() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let mut writer = store.resume("part").unwrap();
    writer.write(b"whole").unwrap();
    fail::cfg("disk::sync", "1*return(EIO)").unwrap();
    let error = writer.finish_expecting(*blake3::hash(b"whole").as_bytes()).unwrap_err();
    fail::remove("disk::sync");
    assert!(matches!(error, BlobError::Io { action: "sync", .. }), "{error}");
    // Its pages may be marked as written that never were: a later sync of them would prove nothing.
    assert!(store.staged().unwrap().is_empty());
    scenario.teardown();
}

/// What an index and its journal should hold after a number of records.
type Values = BTreeMap<String, u64>;

fn apply(index: &Index, seq: u64) -> Result<(), comity_journal::IndexError> {
    for i in 0..3 {
        index.put_json("rounds", &format!("{i}"), &(seq * 10 + i))?;
    }
    if seq == 2 {
        index.delete("rounds", "1")?;
    }
    index.mark_applied(seq, [seq as u8; 32])
}

#[test]
fn an_index_is_what_its_journal_says_or_empty_whichever_call_fails() {
    let n_calls = every_fault(
        // A thread flushes: it tells the next mark, and after the last one nobody.
        false,
        |dir, head: &mut u64| {
            for _ in 0..2 {
                let at = (*head, [*head as u8; 32]);
                let (index, state) =
                    Index::open(dir.join("index"), at).map_err(|e| e.to_string())?;
                // Behind, if the last flush was the call that failed.
                let all = index.scan_json::<u64>("rounds").map_err(|e| e.to_string())?;
                assert_eq!(all.is_empty(), state == IndexState::Fresh);
                for _ in 0..2 {
                    // As a journal that has the record already.
                    *head += 1;
                    apply(&index, *head).map_err(|e| e.to_string())?;
                }
            }
            // Behind, so that it is moved aside; and once more, so that the oldest goes.
            for _ in 0..comity_journal::N_SET_ASIDE_MAX + 1 {
                *head += 1;
                let at = (*head, [*head as u8; 32]);
                let (index, _) = Index::open(dir.join("index"), at).map_err(|e| e.to_string())?;
                index.mark_applied(*head, [*head as u8; 32]).map_err(|e| e.to_string())?;
            }
            Ok(())
        },
        |dir, head, context| {
            let (index, state) = Index::open(dir.join("index"), (head, [head as u8; 32])).unwrap();
            let found: Values = index.scan_json("rounds").unwrap().into_iter().collect();
            let expected: Values = match state {
                IndexState::Fresh => Values::new(),
                IndexState::Current if head > 4 || head == 0 => Values::new(),
                IndexState::Current => (0..3)
                    .filter(|i| head != 2 || *i != 1)
                    .map(|i| (i.to_string(), head * 10 + i))
                    .collect(),
            };
            assert_eq!(found, expected, "{context}, head {head}, {state:?}");
            apply(&index, head + 1).unwrap();
        },
    );
    assert!(n_calls > 20, "{n_calls} calls");
}
