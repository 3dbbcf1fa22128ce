//! The bytes of updates between a client and the fold.
//!
//! Where all that counts is the sum, an update is added to it when it is accepted, and forgotten; where a
//! strategy has to look at each, they lie in memory up to a bound and beyond it in a file without a name,
//! so that memory does not grow with the number of clients.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use comity_federation::{Accumulator, UpdateDigest, UpdateEncoding, Updates};

/// Most bytes of updates that are held in memory.
const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Updates that are added to a sum at once.
const LANES: usize = 4;

/// Updates that nobody has folded yet.
#[derive(Debug, Default)]
pub(super) struct UpdateStore {
    held: BTreeMap<UpdateDigest, Held>,
    n_bytes_in_memory: usize,
    file: Option<File>,
    /// Where the next one is written in the file.
    end: u64,
}

#[derive(Debug)]
enum Held {
    InMemory(Vec<u8>),
    InFile { start: u64, n_bytes: usize },
}

impl UpdateStore {
    pub(super) fn insert(&mut self, digest: UpdateDigest, bytes: Vec<u8>) -> io::Result<()> {
        if self.held.contains_key(&digest) {
            return Ok(());
        }
        let held = if self.n_bytes_in_memory + bytes.len() <= MEMORY_BYTES_MAX {
            self.n_bytes_in_memory += bytes.len();
            Held::InMemory(bytes)
        } else {
            if self.file.is_none() {
                self.file = Some(tempfile::tempfile()?);
            }
            let file = self.file.as_ref().expect("it was just opened");
            file.write_all_at(&bytes, self.end)?;
            let held = Held::InFile { start: self.end, n_bytes: bytes.len() };
            self.end += bytes.len() as u64;
            held
        };
        self.held.insert(digest, held);
        Ok(())
    }

    /// The bytes of an update that is held.
    ///
    /// # Panics
    /// If it is not.
    pub(super) fn bytes(&self, digest: &UpdateDigest) -> io::Result<Cow<'_, [u8]>> {
        match &self.held[digest] {
            Held::InMemory(bytes) => Ok(Cow::Borrowed(bytes)),
            held @ Held::InFile { n_bytes, .. } => {
                let mut bytes = vec![0; *n_bytes];
                self.read(held, 0, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    fn read(&self, held: &Held, from: u64, into: &mut [u8]) -> io::Result<()> {
        match held {
            Held::InMemory(bytes) => {
                let from = from as usize;
                into.copy_from_slice(&bytes[from..from + into.len()]);
                Ok(())
            }
            Held::InFile { start, .. } => {
                let file = self.file.as_ref().expect("what lies in it is held");
                file.read_exact_at(into, start + from)
            }
        }
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = &UpdateDigest> {
        self.held.keys()
    }

    /// Forgets an update.
    pub(super) fn remove(&mut self, digest: &UpdateDigest) {
        if let Some(Held::InMemory(bytes)) = self.held.remove(digest) {
            self.n_bytes_in_memory -= bytes.len();
        }
    }

    /// Keeps those for which `is_needed` says so.
    pub(super) fn retain(&mut self, is_needed: impl Fn(&UpdateDigest) -> bool) {
        self.held.retain(|digest, _| is_needed(digest));
        let in_memory = |held: &Held| match held {
            Held::InMemory(bytes) => bytes.len(),
            Held::InFile { .. } => 0,
        };
        self.n_bytes_in_memory = self.held.values().map(in_memory).sum();
        if !self.held.values().any(|held| matches!(held, Held::InFile { .. })) {
            self.file = None;
            self.end = 0;
        }
    }
}

/// Some of a store's updates, as a strategy reads them.
pub(super) struct Chosen<'a> {
    pub(super) store: &'a UpdateStore,
    pub(super) digests: Vec<UpdateDigest>,
    pub(super) encoding: UpdateEncoding,
    pub(super) n_coordinates: usize,
    /// Encoded bytes on their way to be decoded.
    pub(super) encoded: Vec<u8>,
}

impl Updates for Chosen<'_> {
    type Error = io::Error;

    fn read(&mut self, index: usize, from: usize, into: &mut [u8]) -> io::Result<()> {
        let range = from..from + into.len() / 4;
        let span = self.encoding.span(&range, self.n_coordinates);
        self.encoded.resize((span.end - span.start) as usize, 0);
        self.store.read(&self.store.held[&self.digests[index]], span.start, &mut self.encoded)?;
        self.encoding.decode(&range, &self.encoded, into);
        Ok(())
    }
}

/// The sum of a round's accepted updates, each as often as its weight says.
#[derive(Debug)]
pub(super) struct RoundSum {
    n_coordinates: usize,
    accumulator: Accumulator,
    /// Accepted, and not added yet: four at once cost little more than one.
    waiting: Vec<(Vec<u8>, u64)>,
    n_updates: usize,
}

impl RoundSum {
    pub(super) fn new(n_coordinates: usize) -> Self {
        Self {
            n_coordinates,
            accumulator: Accumulator::new(n_coordinates),
            waiting: Vec::new(),
            n_updates: 0,
        }
    }

    /// Adds the update with these `bytes`, little-endian, four a coordinate.
    pub(super) fn add(&mut self, bytes: Vec<u8>, weight: u64) {
        self.n_updates += 1;
        self.waiting.push((bytes, weight));
        if let [(a, wa), (b, wb), (c, wc), (d, wd)] = self.waiting.as_slice() {
            self.accumulator.add_four([a, b, c, d], [*wa, *wb, *wc, *wd]);
            self.waiting.clear();
        }
        debug_assert!(self.waiting.len() < LANES, "four are added at once");
    }

    /// The sum, the total weight and the number of updates; begins anew.
    pub(super) fn take(&mut self) -> (Vec<i64>, u64, usize) {
        let Self { mut accumulator, waiting, n_updates, n_coordinates } =
            std::mem::replace(self, Self::new(self.n_coordinates));
        debug_assert!(n_coordinates == self.n_coordinates, "a run's updates have one length");
        for (bytes, weight) in waiting {
            accumulator.add(&bytes, weight);
        }
        let total = accumulator.weight_total();
        (accumulator.into_sum(), total, n_updates)
    }
}

/// A sum in place of its updates.
pub(super) struct Summed<'a>(pub(super) &'a [i64]);

impl Updates for Summed<'_> {
    type Error = io::Error;

    fn read(&mut self, _: usize, _: usize, _: &mut [u8]) -> io::Result<()> {
        unreachable!("a strategy that is of the sum asks for nothing else")
    }

    fn weighted_sum(&mut self, range: &Range<usize>, _: &[u64]) -> io::Result<Option<Vec<i64>>> {
        Ok(Some(self.0[range.clone()].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(i: u8) -> UpdateDigest {
        UpdateDigest([i; 32])
    }

    #[test]
    fn updates_beyond_the_bound_lie_in_a_file_and_read_the_same() {
        let mut store = UpdateStore::default();
        let n_bytes = MEMORY_BYTES_MAX / 4;
        let update = |i: u8| -> Vec<u8> { (0..n_bytes).map(|k| i.wrapping_add(k as u8)).collect() };
        for i in 0..6 {
            store.insert(digest(i), update(i)).unwrap();
        }
        assert_eq!((store.n_bytes_in_memory, store.end), (MEMORY_BYTES_MAX, 2 * n_bytes as u64));
        let digests = vec![digest(5), digest(0)];
        let encoding = UpdateEncoding::Int32;
        let mut chosen = Chosen {
            store: &store,
            digests,
            encoding,
            n_coordinates: n_bytes / 4,
            encoded: Vec::new(),
        };
        for (index, i) in [5, 0].into_iter().enumerate() {
            let mut chunk = vec![0; 400];
            chosen.read(index, 1000, &mut chunk).unwrap();
            assert_eq!(chunk, update(i)[4000..4400]);
            assert_eq!(*store.bytes(&digest(i)).unwrap(), update(i)[..]);
        }
        store.retain(|held| *held == digest(1));
        assert_eq!((store.n_bytes_in_memory, store.end), (n_bytes, 0));
    }

    #[test]
    fn a_round_sum_is_the_sum_whatever_the_number_of_updates() {
        let mut sum = RoundSum::new(3);
        for n in [0, 1, 4, 7] {
            for i in 0..n {
                let words = [i, -2 * i, 1];
                sum.add(words.iter().flat_map(|w: &i32| w.to_le_bytes()).collect(), 10);
            }
            let triangle = i64::from(n * (n - 1) / 2);
            let expected = vec![10 * triangle, -20 * triangle, 10 * i64::from(n)];
            assert_eq!(sum.take(), (expected, 10 * n as u64, n as usize));
        }
    }
}
