//! How much of uploads may lie in memory, all connections together.
//!
//! HTTP/2 windows are sized for one upload over a long link; eight fast ones beside a slow disk would have
//! eight windows waiting in memory.  So each connection counts what it brought and what of it was written,
//! and is not read on while more than its share of the limit waits.  Where the disk keeps up little waits,
//! and the window alone counts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

use crate::limits::{UNREAD_BYTES_MAX, UNREAD_EACH_BYTES_MIN};

/// Headers of frames and messages around one chunk: more than there are, so that the count does not drift
/// upwards.
const AROUND_BYTES: usize = 64;

/// What one connection brought to its uploads and is still in memory.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Uploads on all connections of the server.
    n_all: Arc<AtomicUsize>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    n_uploads: usize,
    unread: usize,
    waiting: Option<Waker>,
}

impl Flow {
    /// The flow of a connection of the server whose uploads `n_all` counts.
    pub(crate) fn new(n_all: Arc<AtomicUsize>) -> Self {
        Self { n_all, inner: Mutex::default() }
    }

    /// Whether the connection may be read on; otherwise its task is woken when it may.
    pub(crate) fn has_room(&self, cx: &Context<'_>) -> bool {
        let mut inner = self.lock();
        let share = UNREAD_BYTES_MAX / self.n_all.load(Ordering::Relaxed).max(1);
        let full = inner.n_uploads > 0 && inner.unread >= share.max(UNREAD_EACH_BYTES_MIN);
        inner.waiting = full.then(|| cx.waker().clone());
        !full
    }

    /// Counts what the connection brought.
    pub(crate) fn came(&self, n_bytes: usize) {
        let mut inner = self.lock();
        if inner.n_uploads > 0 {
            inner.unread += n_bytes;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        change(&mut inner);
        if let Some(waker) = inner.waiting.take() {
            waker.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload that is taken from its connection, until it is dropped.
#[derive(Debug)]
pub struct Taking(Arc<Flow>);

impl Taking {
    pub(crate) fn new(flow: Arc<Flow>) -> Self {
        flow.n_all.fetch_add(1, Ordering::Relaxed);
        flow.change(|inner| inner.n_uploads += 1);
        Self(flow)
    }

    /// Notes that a chunk of `n_bytes` is no longer in memory.
    pub fn took(&self, n_bytes: usize) {
        self.0.change(|inner| {
            inner.unread = inner.unread.saturating_sub(n_bytes + AROUND_BYTES);
        });
    }
}

/// An upload that comes from no connection.
impl Default for Taking {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.0.n_all.fetch_sub(1, Ordering::Relaxed);
        self.0.change(|inner| {
            inner.n_uploads -= 1;
            // What an upload leaves behind goes with its stream.
            inner.unread = 0;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn a_connection_waits_while_its_share_lies_unread() {
        let all = Arc::<AtomicUsize>::default();
        let flow = Arc::new(Flow::new(Arc::clone(&all)));
        flow.came(2 * UNREAD_BYTES_MAX);
        assert!(flow.has_room(&context()), "no upload is under way");
        let upload = Taking::new(Arc::clone(&flow));
        flow.came(UNREAD_BYTES_MAX - 1);
        assert!(flow.has_room(&context()), "one upload alone has the whole limit");
        let others: Vec<Taking> =
            (0..3).map(|_| Taking::new(Arc::new(Flow::new(Arc::clone(&all))))).collect();
        assert!(!flow.has_room(&context()), "four uploads share it");
        upload.took(UNREAD_BYTES_MAX / 4 * 3);
        assert!(flow.has_room(&context()));
        flow.came(UNREAD_BYTES_MAX);
        assert!(!flow.has_room(&context()));
        drop(upload);
        assert!(flow.has_room(&context()), "nobody will take what is left");
        drop(others);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn however_many_upload_each_may_bring_whole_chunks() {
        let all = Arc::<AtomicUsize>::default();
        let flow = Arc::new(Flow::new(Arc::clone(&all)));
        let _upload = Taking::new(Arc::clone(&flow));
        all.store(1 << 20, Ordering::Relaxed);
        flow.came(2 * crate::chunk::CHUNK_BYTES);
        assert!(flow.has_room(&context()));
    }
}
