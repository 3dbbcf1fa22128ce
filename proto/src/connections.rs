//! Who is connected: no more connections in all, and of one identity, than the limits say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::limits::{CONNECTION_AGE_MAX, CONNECTIONS_EACH_MAX, CONNECTIONS_MAX};

/// All open connections of a server; clones share them.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Arc<Mutex<Open>>,
    n_max: usize,
    n_each_max: usize,
    /// How old one may grow.
    pub(crate) age_max: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(CONNECTIONS_MAX, CONNECTIONS_EACH_MAX, CONNECTION_AGE_MAX)
    }
}

#[derive(Debug, Default)]
struct Open {
    /// By number, so that the oldest come first; who, and how to end it.
    all: BTreeMap<u64, (String, oneshot::Sender<()>)>,
    next: u64,
}

impl Open {
    /// The oldest connection of the identity that has most, if that is more than `n`.
    fn to_end(&self, n: usize) -> Option<u64> {
        let mut of_each: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        for (number, (who, _)) in &self.all {
            of_each.entry(who).or_insert((0, *number)).0 += 1;
        }
        let (n_most, oldest) =
            of_each.into_values().max_by_key(|(n, oldest)| (*n, std::cmp::Reverse(*oldest)))?;
        (n_most > n).then_some(oldest)
    }
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Connections,
    number: u64,
    /// Fires when the place is wanted by another.
    pub(crate) ended: oneshot::Receiver<()>,
}

impl Connections {
    /// At most `n_max` connections, of one identity `n_each_max`, each up to `age_max` old.
    #[must_use]
    pub fn new(n_max: usize, n_each_max: usize, age_max: Duration) -> Self {
        Self { open: Arc::default(), n_max, n_each_max, age_max }
    }

    /// Ends all connections of `who` at once, whatever they carry.
    pub fn end(&self, who: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, (_, end)) in open.all.extract_if(.., |_, (other, _)| other == who) {
            let _ = end.send(());
        }
    }

    /// A place for a connection of `who`; `None` if there is none in all of the server.
    ///
    /// Of one identity the newest connections stay: a peer that comes back from a dead connection is let in,
    /// and one that opens them without end disturbs only itself.  When the server is full, the identity
    /// with the most connections loses its oldest, down to one each.
    pub(crate) fn enter(&self, who: String) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.all.iter().filter(|(_, (other, _))| *other == who);
        let (n_own, oldest) = (own.clone().count(), own.map(|(number, _)| *number).next());
        let to_end = if n_own >= self.n_each_max {
            oldest
        } else if open.all.len() >= self.n_max {
            Some(open.to_end(1)?)
        } else {
            None
        };
        if let Some((_, end)) = to_end.and_then(|number| open.all.remove(&number)) {
            let _ = end.send(());
        }
        let (end, ended) = oneshot::channel();
        let number = open.next;
        open.next += 1;
        open.all.insert(number, (who, end));
        Some(Place { connections: self.clone(), number, ended })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(place: &mut Place) -> bool {
        place.ended.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn of_one_identity_the_newest_connections_stay_and_others_are_not_disturbed() {
        let connections = Connections::default();
        let mut other = connections.enter("b".to_owned()).unwrap();
        let mut own: Vec<Place> = (0..CONNECTIONS_EACH_MAX + 2)
            .map(|_| connections.enter("a".to_owned()).unwrap())
            .collect();
        let open: Vec<bool> = own.iter_mut().map(is_open).collect();
        assert_eq!(open.iter().filter(|open| **open).count(), CONNECTIONS_EACH_MAX);
        assert!(!open[0] && !open[1] && is_open(&mut other));
    }

    #[test]
    fn all_connections_of_one_identity_are_ended_and_no_other() {
        let connections = Connections::default();
        let mut open =
            ["a", "b", "a"].map(|who| connections.enter(who.to_owned()).expect("a place"));
        connections.end("a");
        assert_eq!(open.each_mut().map(is_open), [false, true, false]);
        let mut again = connections.enter("a".to_owned()).unwrap();
        assert!(is_open(&mut again));
    }

    #[test]
    fn a_full_server_takes_from_those_who_have_most_and_refuses_when_all_have_one() {
        let connections = Connections::default();
        let mut greedy: Vec<Place> =
            (0..2).map(|_| connections.enter("greedy".to_owned()).unwrap()).collect();
        let mut others: Vec<Place> =
            (2..CONNECTIONS_MAX).map(|i| connections.enter(format!("{i}")).unwrap()).collect();
        let _new = connections.enter("new".to_owned()).unwrap();
        assert!(!is_open(&mut greedy[0]) && is_open(&mut greedy[1]));
        assert!(others.iter_mut().all(is_open));
        assert!(connections.enter("late".to_owned()).is_none());
        // A member that is in keeps its place when it comes again and takes nobody's.
        drop(others.pop());
        assert!(connections.enter("late".to_owned()).is_some());
    }
}
