//! What must survive a crash: a hash-chained journal, blobs by digest, a rebuildable index.
//!
//! The journal is the truth; coordinator and client recover by folding it again.  Models and
//! updates are blobs beside it, named by their BLAKE3 digest.  The index (sled) holds derived
//! state only and is thrown away whenever it does not match the journal to the byte.
//!
//! Deliberately not here: what the records mean (`federation`, `client`, `coordinator`). Journal and blobs
//! block until the disk has answered; the index, which may be lost, has a thread that flushes it.

mod blobs;
mod disk;
pub mod failpoint;
mod index;
mod journal;
mod lock;

pub use blobs::{BlobError, BlobReader, BlobStore, BlobWriter, Swept};
pub use index::{
    FLUSH_PAUSE, Index, IndexError, IndexState, N_SET_ASIDE_MAX, SetAside, VALUE_BYTES_MAX,
};
pub use journal::{Journal, JournalError, PAYLOAD_BYTES_MAX, Record, Verified, read, verify};
pub use lock::{DirLock, LockError};

/// Directory that holds `path`; the working directory for a bare file name.
fn parent(path: &std::path::Path) -> &std::path::Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => std::path::Path::new("."),
    }
}
