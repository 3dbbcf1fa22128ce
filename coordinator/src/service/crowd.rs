//! Streams of one client: no more at once than the limit, and the newest stay.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use comity_federation::ClientId;
use tokio::task::AbortHandle;

/// The tasks that feed one kind of stream; clones share them.
///
/// The oldest goes rather than the newest being refused: a client that comes back from a dead connection is
/// served, and one that opens streams without end disturbs only itself.
#[derive(Clone)]
pub(super) struct Crowd {
    each_max: usize,
    tasks: Arc<Mutex<BTreeMap<ClientId, VecDeque<AbortHandle>>>>,
}

impl Crowd {
    /// Of each client at most `each_max`.
    pub(super) fn new(each_max: usize) -> Self {
        Self { each_max, tasks: Arc::default() }
    }

    /// Counts one more task of `client`, and ends its oldest if they are too many.
    pub(super) fn enter(&self, client: &ClientId, task: AbortHandle) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let own = tasks.entry(client.clone()).or_default();
        own.retain(|task| !task.is_finished());
        own.push_back(task);
        while own.len() > self.each_max {
            if let Some(oldest) = own.pop_front() {
                oldest.abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_streams_of_each_client_stay() {
        let crowd = Crowd::new(2);
        let (a, b): (ClientId, ClientId) = ("KR/a".parse().unwrap(), "KR/b".parse().unwrap());
        let enter = |client: &ClientId| {
            let task = tokio::spawn(std::future::pending::<()>());
            crowd.enter(client, task.abort_handle());
            task
        };
        let (first, other, second, third) = (enter(&a), enter(&b), enter(&a), enter(&a));
        assert!(first.await.unwrap_err().is_cancelled());
        assert!([other, second, third].iter().all(|task| !task.is_finished()));
    }
}
