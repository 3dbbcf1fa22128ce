//! What a coordinator keeps: the journal (the truth), blobs (models and updates), and the sled
//! index of round state, which is rebuilt from the journal whenever it does not match.

mod records;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use comity_federation::{
    ClientId, Event, Launched, ModelDigest, Plan, RecordDigest, RoundRecord, RoundReport, Run,
    RunId, RunReport, Signature, SignedConsent, SignedOrder, Time,
};
use comity_journal::{BlobStore, Index, IndexState, Journal, failpoint};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub(crate) use self::records::recorded;
use self::records::{RECORDS, Unsigned};
use crate::aggregate;
use crate::config::{Home, StorageConfig};
use crate::registry::{Change, Registry};
use crate::retention::{Blobs, needed, used_lately};
use crate::service::run_of_upload;

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
    /// A blob of `(tree/key, value)`: with its key, so that no two values share one.
    Blob(String),
}

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// An operator launched a run.
    Launched {
        run: RunId,
        plan: Box<Plan>,
        start: ModelDigest,
        now: Time,
        by: String,
        /// The operator's order, as it was checked; an earlier version had none.
        #[serde(default)]
        order: Option<Box<SignedOrder>>,
        #[serde(default)]
        consents: Vec<SignedConsent>,
    },
    /// A run took an event.
    Stepped {
        run: RunId,
        now: Time,
        event: Event,
        /// The operator who ordered it, where one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// The coordinator signed what happened in a round.
    Recorded { record: Box<RoundRecord>, signature: Signature },
    /// A client signed a round's record too.
    Countersigned { run: RunId, round: u32, now: Time, client: ClientId, signature: Signature },
    /// Who belongs to the federation changed.
    Membership { change: Change, now: Time, by: String, why: String },
}

/// What a run was launched by, which every client checks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Launch {
    pub(crate) order: SignedOrder,
    pub(crate) consents: Vec<SignedConsent>,
}

/// The coordinator's durable state; one process at a time.
pub(crate) struct Store {
    journal: Journal,
    blobs: Arc<BlobStore>,
    index: Index,
    last: Time,
    kept: StorageConfig,
    /// What the open runs were launched by.
    launches: BTreeMap<RunId, Arc<Launch>>,
    /// What the runs that have ended still need.
    of_ended: Blobs,
    /// What each open run needed when it was looked at last.
    of_open: BTreeMap<RunId, Blobs>,
    /// Round and digest of each run's latest record.
    latest_records: BTreeMap<RunId, (u32, RecordDigest)>,
    /// Who launched each run.
    launched_by: BTreeMap<RunId, Launched>,
    /// Closed rounds without a record, until [`sign_missing`](Self::sign_missing).
    unsigned: Vec<Unsigned>,
}

impl Store {
    /// Opens everything at `home` and replays the journal into the runs that have not ended.
    pub(crate) fn open(
        home: &Home,
        kept: StorageConfig,
    ) -> anyhow::Result<(Self, BTreeMap<RunId, Run>, Registry)> {
        let (mut runs, mut registry) = (BTreeMap::new(), Registry::default());
        let mut last = Time::default();
        let mut launches = BTreeMap::new();
        let mut latest_records = BTreeMap::new();
        let mut launched_by = BTreeMap::new();
        let journal = Journal::open_with(home.journal(), |record| {
            let entry = record.json::<Entry>()?;
            launched_by.extend(records::launch_in(&entry));
            match entry {
                Entry::Launched { run, plan, start, now, order, consents, .. } => {
                    last = last.max(now);
                    if let Some(order) = order {
                        let launch = Launch { order: *order, consents };
                        launches.insert(run.clone(), Arc::new(launch));
                    }
                    runs.insert(run.clone(), Run::new(run, *plan, start, now));
                }
                Entry::Stepped { run, now, event, .. } => {
                    last = last.max(now);
                    let machine = runs
                        .get_mut(&run)
                        .ok_or_else(|| record.refuse(format!("run {run} was never launched")))?;
                    machine.step(event, now).map_err(|e| record.refuse(e))?;
                }
                Entry::Recorded { record, .. } => {
                    latest_records.insert(record.run.clone(), (record.round, record.digest()));
                }
                Entry::Countersigned { .. } => {}
                Entry::Membership { change, now, by, why } => {
                    last = last.max(now);
                    registry.apply(&change, now, &by, &why).map_err(|e| record.refuse(e))?;
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
        let (of_ended, of_open) = (Blobs::new(), BTreeMap::new());
        let unsigned = runs
            .values()
            .flat_map(|run| Unsigned::of(run, latest_records.get(run.id()).copied()))
            .collect();
        let mut store = Self {
            journal,
            blobs,
            index,
            last,
            kept,
            launches,
            of_ended,
            of_open,
            latest_records,
            launched_by,
            unsigned,
        };
        if state == IndexState::Fresh {
            for run in runs.values() {
                store.put_plan(run)?;
                store.put(run, 0)?;
            }
            store.index_records(&home.journal())?;
            store.mark()?;
            info!(runs = runs.len(), "index rebuilt from the journal");
        }
        for run in runs.values().filter(|run| run.outcome().is_some()) {
            needed(run, &store.kept, &mut store.of_ended);
        }
        runs.retain(|_, run| run.outcome().is_none());
        store.launches.retain(|run, _| runs.contains_key(run));
        for run in runs.values() {
            needed(run, &store.kept, store.of_open.entry(run.id().clone()).or_default());
        }
        store.discard_uploads(|run| !runs.keys().any(|open| open.as_str() == run));
        let mut keep = store.needed(runs.values());
        keep.extend(store.blobs_of_index()?);
        match store.blobs.sweep(&keep) {
            Ok(swept) if swept.n_blobs > 0 => {
                info!(
                    blobs = swept.n_blobs,
                    bytes = swept.n_bytes,
                    "blobs removed that no run needs"
                );
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "blobs that no run needs could not be removed"),
        }
        Ok((store, runs, registry))
    }

    /// The blobs that runs need, `open` being those that are open.
    fn needed<'a>(&self, open: impl Iterator<Item = &'a Run>) -> Blobs {
        let mut keep = self.of_ended.clone();
        open.for_each(|run| needed(run, &self.kept, &mut keep));
        keep
    }

    fn blobs_of_index(&self) -> anyhow::Result<Blobs> {
        let mut found = Blobs::new();
        for tree in [RUNS, ROUNDS, PLANS, RECORDS] {
            for (_, stored) in self.index.scan_json::<Stored>(tree)? {
                if let Stored::Blob(digest) = stored {
                    found.insert(digest.parse::<ModelDigest>()?.0);
                }
            }
        }
        Ok(found)
    }

    /// Removes what `run`, after a step that was recorded, needs no longer, unless another of the `open`
    /// runs does. It may have ended; then it is to be among `open` no more.
    pub(crate) fn retire<'a>(&mut self, run: &Run, open: impl Iterator<Item = &'a Run>) {
        let mut used = used_lately(run);
        used.extend(self.of_open.remove(run.id()).unwrap_or_default());
        if run.outcome().is_some() {
            self.launches.remove(run.id());
            needed(run, &self.kept, &mut self.of_ended);
            self.discard_uploads(|staged| staged == run.id().as_str());
        } else {
            needed(run, &self.kept, self.of_open.entry(run.id().clone()).or_default());
        }
        self.remove(used, open);
    }

    /// Forgets parts of updates whose run is `over`.
    fn discard_uploads(&self, over: impl Fn(&str) -> bool) {
        let discarded = self.blobs.staged().and_then(|staged| {
            let of_runs = staged.iter().filter_map(|(name, _)| Some((name, run_of_upload(name)?)));
            of_runs.filter(|(_, run)| over(run)).try_for_each(|(name, _)| {
                self.blobs.discard(name)?;
                Ok(())
            })
        });
        if let Err(error) = discarded {
            warn!(%error, "parts of updates that no run wants could not be removed");
        }
    }

    /// Removes those of `blobs` that no run needs. What cannot be removed now is found by the next start.
    pub(crate) fn remove<'a>(&self, blobs: Blobs, open: impl Iterator<Item = &'a Run>) {
        let keep = self.needed(open);
        failpoint::reach("coordinator::before_sweep");
        for digest in blobs.difference(&keep) {
            if let Err(error) = self.blobs.remove(digest) {
                warn!(%error, "a blob that no run needs could not be removed");
                return;
            }
        }
        failpoint::reach("coordinator::after_sweep");
    }

    /// What open `runs` train from and the disk no longer has as it was written: each is told with its
    /// file. The start of a run is made again.
    pub(crate) fn check_models<'a>(&self, runs: impl Iterator<Item = &'a Run>) -> Vec<String> {
        let mut damage = Vec::new();
        for run in runs {
            let Err(error) = self.blobs.verify(&run.model().0) else { continue };
            let unchanged = run.rounds_from(0).iter().all(|round| round.model.is_none());
            let again = run.plan().manifest().ok().filter(|_| unchanged);
            let again = again.map(|m| aggregate::first_model(&self.blobs, &m, run.plan().seed));
            match again {
                Some(Ok(made)) if made == run.model() => {
                    warn!(run = %run.id(), %error, "the run's first model was made again");
                }
                _ => damage.push(format!("run {}: {error}", run.id())),
            }
        }
        damage
    }

    /// What the open run `run` was launched by.
    pub(crate) fn launch(&self, run: &RunId) -> Option<Arc<Launch>> {
        self.launches.get(run).cloned()
    }

    /// Keeps what a run was launched by, after its record is durable.
    pub(crate) fn launched(&mut self, run: &RunId, launch: Launch) {
        self.launches.insert(run.clone(), Arc::new(launch));
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

    /// Makes all `entries` durable, in this order and with one wait for the disk.
    pub(crate) fn append_all(&mut self, entries: &[Entry]) -> anyhow::Result<()> {
        self.journal.append_all_json(entries).context("the journal cannot be written")?;
        self.launched_by.extend(entries.iter().filter_map(records::launch_in));
        Ok(())
    }

    /// [`append`](Self::append)s what the index does not show.
    pub(crate) fn append_marked(&mut self, entry: &Entry) -> anyhow::Result<()> {
        self.append(entry)?;
        self.mark()
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
            let bytes = serde_json::to_vec(&(format!("{tree}/{key}"), value))?;
            Stored::Blob(ModelDigest(self.blobs.put(&bytes)?).to_string())
        };
        let replaced = self.index.get_json::<Stored>(tree, key)?;
        self.index.put_json(tree, key, &stored)?;
        // If the index is not marked with this before a crash, it is rebuilt and reads no blob.
        match (replaced, stored) {
            (Some(Stored::Blob(old)), Stored::Blob(new)) if old == new => {}
            (Some(Stored::Blob(old)), _) => {
                self.blobs.remove(&old.parse::<ModelDigest>()?.0)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn value<T: DeserializeOwned>(&self, stored: Stored) -> anyhow::Result<T> {
        Ok(match stored {
            Stored::Inline(value) => serde_json::from_value(value)?,
            Stored::Blob(digest) => {
                let digest: ModelDigest = digest.parse()?;
                let (_, value): (String, T) =
                    serde_json::from_slice(&self.blobs.read_all(&digest.0)?)?;
                value
            }
        })
    }

    fn get_value<T: DeserializeOwned>(&self, tree: &str, key: &str) -> anyhow::Result<Option<T>> {
        self.index.get_json::<Stored>(tree, key)?.map(|stored| self.value(stored)).transpose()
    }

    pub(crate) fn mark(&self) -> anyhow::Result<()> {
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
