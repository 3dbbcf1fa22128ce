//! Who is connected now: counted by the open streams of assignments, so that it says what is, not what was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use comity_federation::ClientId;
use tokio::sync::watch;

/// The clients that follow this coordinator; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Presence {
    streams: Arc<Mutex<BTreeMap<ClientId, usize>>>,
    changes: watch::Sender<u64>,
}

/// One stream of a client; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Following {
    presence: Presence,
    client: ClientId,
}

impl Presence {
    /// Nobody yet; `changes` is told whenever somebody comes or leaves.
    pub(crate) fn new(changes: watch::Sender<u64>) -> Self {
        Self { streams: Arc::default(), changes }
    }

    /// `client` follows until what is returned is dropped.
    pub(crate) fn follow(&self, client: ClientId) -> Following {
        *self.streams().entry(client.clone()).or_default() += 1;
        self.announce();
        Following { presence: self.clone(), client }
    }

    /// Whether `client` is connected.
    pub(crate) fn is_connected(&self, client: &ClientId) -> bool {
        self.streams().contains_key(client)
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<ClientId, usize>> {
        // Counting cannot leave it half changed.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.changes.send_modify(|version| *version += 1);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut streams = self.presence.streams();
        if let Some(n) = streams.get_mut(&self.client) {
            *n -= 1;
            if *n == 0 {
                streams.remove(&self.client);
            }
        }
        drop(streams);
        self.presence.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_connected_while_one_of_its_streams_is_open() {
        let (changes, news) = watch::channel(0);
        let presence = Presence::new(changes);
        let client: ClientId = "KR/a".parse().unwrap();
        let first = presence.follow(client.clone());
        let second = presence.follow(client.clone());
        drop(first);
        assert!(presence.is_connected(&client));
        drop(second);
        assert!(!presence.is_connected(&client));
        assert_eq!(*news.borrow(), 4);
    }
}
