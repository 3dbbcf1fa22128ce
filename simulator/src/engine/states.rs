//! What clients keep of their own between rounds: in memory where that is little, else in a file without a
//! name, so that memory does not grow with the number of clients.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use comity_federation::ClientState;

/// Most bytes of states that are held in memory.
const MEMORY_BYTES_MAX: usize = 64 << 20;

/// The states of all clients, by their place in the plan.
#[derive(Debug)]
pub(super) struct States {
    /// Bytes of one state.
    n_bytes: usize,
    place: Place,
    /// Whose changed since [`take_changed`](Self::take_changed).
    changed: BTreeSet<usize>,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<Option<ClientState>>),
    File { file: File, is_there: Vec<bool> },
}

impl States {
    /// No states yet, of `n_values` each for `n_clients`.
    pub(super) fn new(n_clients: usize, n_values: usize) -> io::Result<Self> {
        Self::bounded(n_clients, n_values, MEMORY_BYTES_MAX)
    }

    fn bounded(n_clients: usize, n_values: usize, bytes_max: usize) -> io::Result<Self> {
        let n_bytes = 4 * n_values;
        let place = if n_clients.saturating_mul(n_bytes) <= bytes_max {
            Place::Memory(vec![None; n_clients])
        } else {
            Place::File { file: tempfile::tempfile()?, is_there: vec![false; n_clients] }
        };
        Ok(Self { n_bytes, place, changed: BTreeSet::new() })
    }

    /// The state of `client`; `None` before its first.
    pub(super) fn get(&self, client: usize) -> io::Result<Option<ClientState>> {
        match &self.place {
            Place::Memory(states) => Ok(states[client].clone()),
            Place::File { is_there, .. } if !is_there[client] => Ok(None),
            Place::File { file, .. } => {
                let mut bytes = vec![0; self.n_bytes];
                file.read_exact_at(&mut bytes, (client * self.n_bytes) as u64)?;
                Ok(ClientState::from_bytes(&bytes))
            }
        }
    }

    /// # Panics
    /// If `state` has another length than the others.
    pub(super) fn set(&mut self, client: usize, state: ClientState) -> io::Result<()> {
        assert_eq!(4 * state.values().len(), self.n_bytes, "states of one run have one length");
        match &mut self.place {
            Place::Memory(states) => states[client] = Some(state),
            Place::File { file, is_there } => {
                file.write_all_at(&state.to_bytes(), (client * self.n_bytes) as u64)?;
                is_there[client] = true;
            }
        }
        self.changed.insert(client);
        Ok(())
    }

    /// Whose state changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_back_the_same_in_memory_and_in_a_file() {
        for bytes_max in [0, usize::MAX] {
            let mut states = States::bounded(3, 2, bytes_max).unwrap();
            let state = |value: f32| ClientState::new(vec![value, -value]);
            states.set(2, state(1.0)).unwrap();
            states.set(0, state(2.0)).unwrap();
            states.set(2, state(3.0)).unwrap();
            let all: Vec<_> = (0..3).map(|client| states.get(client).unwrap()).collect();
            assert_eq!(all, [Some(state(2.0)), None, Some(state(3.0))]);
            assert_eq!(states.take_changed(), BTreeSet::from([0, 2]));
            assert!(states.take_changed().is_empty());
        }
    }
}
