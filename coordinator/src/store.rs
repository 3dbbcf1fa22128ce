//! What a coordinator keeps: the journal (the truth), blobs (models and updates), and the sled
//! index of round state, which is rebuilt from the journal whenever it does not match.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use comity_federation::{Event, ModelDigest, Plan, RoundReport, Run, RunId, RunReport, Time};
use comity_journal::{BlobStore, Index, IndexState, Journal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::config::Home;

/// Tree of [`RunReport`]s without their history.
const RUNS: &str = "runs";
/// Tree of [`RoundReport`]s.
const ROUNDS: &str = "rounds";

/// Tree of [`Plan`]s.
const PLANS: &str = "plans";

/// Largest value that the index holds itself.
const INLINE_BYTES_MAX: usize = 60_000;

/// A value of the index.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stored {
    Inline(serde_json::Value),
    Blob(String),
}

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// An operator launched a run.
    Launched { run: RunId, plan: Box<Plan>, start: ModelDigest, now: Time, by: String },
    /// A run took an event.
    Stepped { run: RunId, now: Time, event: Event },
}

/// The coordinator's durable state; one process at a time.
pub(crate) struct Store {
    journal: Journal,
    blobs: Arc<BlobStore>,
    index: Index,
    last: Time,
}

impl Store {
    /// Opens everything at `home` and replays the journal into the runs that have not ended.
    pub(crate) fn open(home: &Home) -> anyhow::Result<(Self, BTreeMap<RunId, Run>)> {
        let mut runs = BTreeMap::new();
        let mut last = Time::default();
        let journal = Journal::open_with(home.journal(), |record| {
            match record.json::<Entry>()? {
                Entry::Launched { run, plan, start, now, .. } => {
                    last = last.max(now);
                    runs.insert(run.clone(), Run::new(run, *plan, start, now));
                }
                Entry::Stepped { run, now, event } => {
                    last = last.max(now);
                    let machine = runs
                        .get_mut(&run)
                        .ok_or_else(|| record.refuse(format!("run {run} was never launched")))?;
                    machine.step(event, now).map_err(|e| record.refuse(e))?;
                }
            }
            Ok(())
        })?;
        if journal.recovered_bytes() > 0 {
            warn!(bytes = journal.recovered_bytes(), "unfinished journal record removed");
        }
        let blobs = Arc::new(BlobStore::open(home.blobs())?);
        let (index, state) = Index::open(home.index(), journal.head())?;
        if let Some(aside) = index.set_aside() {
            warn!(reason = aside.reason, moved_to = %aside.path.display(), "index set aside");
        }
        let store = Self { journal, blobs, index, last };
        if state == IndexState::Fresh {
            for run in runs.values() {
                store.put_plan(run)?;
                store.put(run, 0)?;
            }
            store.mark()?;
            info!(runs = runs.len(), "index rebuilt from the journal");
        }
        runs.retain(|_, run| run.outcome().is_none());
        Ok((store, runs))
    }

    /// The latest time that the journal held when it was opened.
    pub(crate) fn last(&self) -> Time {
        self.last
    }

    /// Makes `entry` durable.
    pub(crate) fn append(&mut self, entry: &Entry) -> anyhow::Result<()> {
        self.journal.append_json(entry).context("the journal cannot be written")?;
        Ok(())
    }

    /// Brings the index up to date with `run` after an [`append`](Self::append).
    pub(crate) fn index(&self, run: &Run) -> anyhow::Result<()> {
        // A step changes at most the open round and the one before it.
        self.put(run, run.n_rounds().saturating_sub(2))?;
        self.mark()
    }

    /// [`index`](Self::index) of a run that was just launched.
    pub(crate) fn index_launched(&self, run: &Run) -> anyhow::Result<()> {
        self.put_plan(run)?;
        self.index(run)
    }

    fn put_plan(&self, run: &Run) -> anyhow::Result<()> {
        self.put_value(PLANS, run.id().as_str(), run.plan())
    }

    fn put(&self, run: &Run, n_rounds_skipped: usize) -> anyhow::Result<()> {
        self.put_value(RUNS, run.id().as_str(), &run.summary())?;
        for round in run.rounds_from(n_rounds_skipped) {
            self.put_value(ROUNDS, &round_key(run.id(), round.round), &round)?;
        }
        Ok(())
    }

    /// Index values are small by rule, so what a large cohort makes large goes to a blob.
    fn put_value<T: Serialize>(&self, tree: &str, key: &str, value: &T) -> anyhow::Result<()> {
        let value = serde_json::to_value(value)?;
        let bytes = serde_json::to_vec(&value)?;
        let stored = if bytes.len() <= INLINE_BYTES_MAX {
            Stored::Inline(value)
        } else {
            Stored::Blob(ModelDigest(self.blobs.put(&bytes)?).to_string())
        };
        Ok(self.index.put_json(tree, key, &stored)?)
    }

    fn value<T: DeserializeOwned>(&self, stored: Stored) -> anyhow::Result<T> {
        Ok(match stored {
            Stored::Inline(value) => serde_json::from_value(value)?,
            Stored::Blob(digest) => {
                let digest: ModelDigest = digest.parse()?;
                serde_json::from_slice(&self.blobs.read_all(&digest.0)?)?
            }
        })
    }

    fn get_value<T: DeserializeOwned>(&self, tree: &str, key: &str) -> anyhow::Result<Option<T>> {
        self.index.get_json::<Stored>(tree, key)?.map(|stored| self.value(stored)).transpose()
    }

    fn mark(&self) -> anyhow::Result<()> {
        let (seq, hash) = self.journal.head();
        Ok(self.index.mark_applied(seq, hash)?)
    }

    /// The report of `run` from the index, with its rounds.
    pub(crate) fn report(&self, run: &RunId) -> anyhow::Result<Option<RunReport>> {
        let Some(mut report) = self.get_value::<RunReport>(RUNS, run.as_str())? else {
            return Ok(None);
        };
        // Round 0 is there where the plan asked for statistics.
        for round in 0..=report.round {
            let key = round_key(run, round);
            if let Some(round) = self.get_value::<RoundReport>(ROUNDS, &key)? {
                report.history.push(round);
            }
        }
        Ok(Some(report))
    }

    /// The plan of `run`, open or ended.
    pub(crate) fn plan(&self, run: &RunId) -> anyhow::Result<Option<Plan>> {
        self.get_value(PLANS, run.as_str())
    }

    /// All runs, without their rounds, oldest first.
    pub(crate) fn reports(&self) -> anyhow::Result<Vec<RunReport>> {
        let stored = self.index.scan_json::<Stored>(RUNS)?;
        let mut reports = stored
            .into_iter()
            .map(|(_, stored)| self.value(stored))
            .collect::<anyhow::Result<Vec<RunReport>>>()?;
        reports.sort_by_key(|report| report.started);
        Ok(reports)
    }

    /// The models and updates.
    pub(crate) fn blobs(&self) -> Arc<BlobStore> {
        Arc::clone(&self.blobs)
    }
}

fn round_key(run: &RunId, round: u32) -> String {
    format!("{run}/{round:08}")
}
