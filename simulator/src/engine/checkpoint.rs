//! A simulation on disk, so that one that was killed goes on where it was, to the same bits.
//!
//! ```text
//! journal.jsonl     what the machines and ledgers recorded, as deployed: they are replayed
//! blobs/            models, updates and clients' states, by their digests
//! checkpoint.json   the rest, and how much of the journal belongs to it; replaced as a whole
//! ```
//!
//! Written when a round's model is there and the run has not been told so: nothing but messages and
//! trainings is under way then.  Whatever a killed process wrote after its last checkpoint is not read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use comity_federation::{Event, ParticipantEvent, Time};
use comity_privacy::LedgerEntry;
use serde::{Deserialize, Serialize};

use super::queue::{Moment, Queue};
use super::wave::Ready;
use crate::institutions::Saved;
use crate::results::folder::write_whole;
use crate::{Conduct, RoundScore, SimulationError};

const CHECKPOINT: &str = "checkpoint.json";
const JOURNAL: &str = "journal.jsonl";
const BLOBS: &str = "blobs";

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The run took an event.
    Run(Time, Event),
    /// The client at this place took one.
    Client(usize, ParticipantEvent),
    /// Its ledger wrote an entry.
    Ledger(usize, LedgerEntry),
}

/// Everything that is not in the journal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) identity: Identity,
    /// How much of the journal belongs to this state.
    pub(super) journal_bytes: u64,
    pub(super) now: Time,
    /// The round whose model this is.
    pub(super) round: u32,
    /// The new model, and those from which somebody may still train.
    pub(super) model: Digest,
    pub(super) bases: Vec<Digest>,
    pub(super) updates: Vec<Digest>,
    /// Clients' states, by place.
    pub(super) states: BTreeMap<usize, Digest>,
    pub(super) queue: Queue,
    pub(super) trained: Vec<(Moment, Result<Ready, String>)>,
    pub(super) clients: Vec<ClientMark>,
    /// What the one that protects institutions keeps.
    pub(super) institutions: Option<Saved>,
    pub(super) rounds: Vec<RoundScore>,
}

/// What of a client is neither in its journal nor in its ledger.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct ClientMark {
    pub(super) epsilon: Option<f64>,
    pub(super) died_in: Option<u32>,
}

/// Whose checkpoint it is: only the same simulation goes on from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) plan: String,
    pub(super) seed: u64,
    pub(super) noise: String,
    pub(super) conduct: Conduct,
    /// Digest of the clients' records and of the test set.
    pub(super) data: Digest,
}

/// A BLAKE3 digest in hexadecimal.
pub(super) type Digest = String;

/// The folder of a simulation's checkpoints.
#[derive(Debug)]
pub(super) struct Checkpoints {
    dir: PathBuf,
    journal: File,
    /// Where the next line goes.
    journal_bytes: u64,
    /// Blobs that the last checkpoint names, or that were written since.
    blobs: BTreeSet<Digest>,
}

fn damaged(path: &Path, reason: &str) -> SimulationError {
    SimulationError::Checkpoint { path: path.to_owned(), reason: reason.to_owned() }
}

impl Checkpoints {
    /// Begins anew in `dir`, and forgets what was there.
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        // First what makes the rest count.
        for name in [CHECKPOINT, JOURNAL] {
            match fs::remove_file(dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::remove_dir_all(dir.join(BLOBS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(dir.join(BLOBS))?;
        let journal = File::create(dir.join(JOURNAL))?;
        Ok(Self { dir: dir.to_owned(), journal, journal_bytes: 0, blobs: BTreeSet::new() })
    }

    /// The last checkpoint in `dir` with its journal; `None` if there is none.
    ///
    /// # Errors
    /// [`SimulationError::Checkpoint`] if it is another simulation's, or damaged.
    pub(super) fn open(
        dir: &Path,
        identity: &Identity,
    ) -> Result<Option<(Self, State, Vec<Line>)>, SimulationError> {
        let path = dir.join(CHECKPOINT);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let state: State = serde_json::from_slice(&text)
            .map_err(|error| damaged(&path, &format!("it is damaged ({error})")))?;
        if state.identity != *identity {
            let (is, was) = (identity, &state.identity);
            let differs = [
                ("plan", is.plan != was.plan),
                ("world's seed", is.seed != was.seed),
                ("noise", is.noise != was.noise),
                ("world's conduct", is.conduct != was.conduct),
                ("data", is.data != was.data),
            ];
            let differs: Vec<&str> =
                differs.iter().filter(|(_, differs)| *differs).map(|(what, _)| *what).collect();
            let reason =
                format!("it is another simulation's: the {} differs", differs.join(", the "));
            return Err(damaged(&path, &reason));
        }
        let path = dir.join(JOURNAL);
        let mut journal = OpenOptions::new().read(true).write(true).open(&path)?;
        if journal.metadata()?.len() < state.journal_bytes {
            return Err(damaged(&path, "it is shorter than its checkpoint says"));
        }
        journal.set_len(state.journal_bytes)?;
        let mut lines = Vec::new();
        for line in BufReader::new((&mut journal).take(state.journal_bytes)).lines() {
            let line = serde_json::from_str(&line?)
                .map_err(|error| damaged(&path, &format!("it is damaged ({error})")))?;
            lines.push(line);
        }
        journal.seek(SeekFrom::End(0))?;
        let checkpoints = Self {
            dir: dir.to_owned(),
            journal,
            journal_bytes: state.journal_bytes,
            blobs: state.blobs().cloned().collect(),
        };
        Ok(Some((checkpoints, state, lines)))
    }

    /// The blob that `digest` names.
    pub(super) fn blob(&self, digest: &str) -> Result<Vec<u8>, SimulationError> {
        let path = self.dir.join(BLOBS).join(digest);
        let bytes = fs::read(&path)?;
        if blake3::hash(&bytes).to_hex().as_str() != digest {
            return Err(damaged(&path, "its bytes are not those that its name says"));
        }
        Ok(bytes)
    }

    /// Writes `bytes` as a blob, unless it is there, and returns its digest.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = blake3::hash(bytes).to_hex().to_string();
        if self.blobs.insert(digest.clone()) {
            fs::write(self.dir.join(BLOBS).join(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Makes `state` the one to go on from, after `lines`.
    pub(super) fn write(
        &mut self,
        lines: &[Line],
        mut state: State,
    ) -> Result<State, SimulationError> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line).map_err(io::Error::from)?;
            text.push(b'\n');
        }
        self.journal.write_all(&text)?;
        self.journal_bytes += text.len() as u64;
        state.journal_bytes = self.journal_bytes;
        let json = serde_json::to_vec(&state).map_err(io::Error::from)?;
        write_whole(&self.dir.join(CHECKPOINT), &json)?;
        let needed: BTreeSet<Digest> = state.blobs().cloned().collect();
        for digest in self.blobs.difference(&needed) {
            fs::remove_file(self.dir.join(BLOBS).join(digest))?;
        }
        self.blobs = needed;
        Ok(state)
    }
}

impl State {
    fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let listed = self.bases.iter().chain(&self.updates).chain(self.states.values());
        let waiting = self.trained.iter().filter_map(|(_, result)| result.as_ref().ok());
        listed.chain([&self.model]).chain(waiting.filter_map(|ready| ready.saved.as_ref()))
    }
}
