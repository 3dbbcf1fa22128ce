//! What a node keeps: its journal (runs, ledger, everything that left), blobs (models and
//! updates), and the sled index of runs that have ended, rebuilt from the journal when it does
//! not match.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use comity_certs::Clock;
use comity_federation::{
    ClientId, ClientState, Contribution, Countersignature, Participant, ParticipantEffect,
    ParticipantEvent, Plan, Receipt, RecordBook, Rejection, RoundRecord, RunId, Signature,
    SignedConsent, SignedOrder, StateDigest, Terms, Time, Update,
};
use comity_journal::{BlobStore, DirLock, Index, IndexState, Journal, JournalError, failpoint};
use comity_privacy::{
    Charge, Ledger, LedgerEntry, LedgerStore, Limit, Mechanism, Reservation, ReservationKey,
};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use crate::consent::{Ordered, SeenOrders};
use crate::decisions::Decision;
use crate::egress::{BytesOfRounds, Departure, Egress, Kind};
use crate::year;

/// Tree of [`EndedRun`]s.
const ENDED: &str = "ended";

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// The coordinator offered a plan.
    Offered {
        run: RunId,
        plan: Box<Plan>,
        now: Time,
        /// The operator's order, as it was checked; an earlier version asked for none.
        #[serde(default)]
        order: Option<Box<SignedOrder>>,
        #[serde(default)]
        consents: Vec<SignedConsent>,
    },
    /// The steward decided about a run.
    Decided { run: RunId, decision: Decision },
    /// This node's part in a run took an event.
    Stepped { run: RunId, event: ParticipantEvent },
    /// The ledger was debited.
    Ledger {
        ledger: LedgerEntry,
        /// When; an earlier version did not say.
        #[serde(default)]
        now: Option<Time>,
    },
    /// An update was released: the ledger's commit and the event, in one record, because a crash
    /// between the two would leave an update that may neither leave nor be trained again.
    ///
    /// What the client keeps after the round is named in it too, so that an update and the state after it
    /// are there together or not at all.
    Released {
        ledger: LedgerEntry,
        run: RunId,
        event: ParticipantEvent,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<StateDigest>,
    },
    /// Something was let out.
    Left { departure: Departure },
    /// The coordinator's receipt for an update.
    Receipt { receipt: Box<Receipt>, signature: Signature },
    /// What the coordinator signed of a round, checked and countersigned by this node, and some of the other
    /// clients' signatures under the record before.
    Record {
        client: ClientId,
        record: Box<RoundRecord>,
        signature: Signature,
        countersignature: Signature,
        witnesses: Vec<Countersignature>,
    },
    /// Why the coordinator of a run is not believed any more, and what it signed that shows it.
    Breach { run: RunId, reason: String, evidence: Option<Evidence>, now: Time },
}

/// What a coordinator signed and cannot have meant.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "evidence", rename_all = "snake_case")]
pub(crate) enum Evidence {
    Record { record: Box<RoundRecord>, signature: Signature },
    Receipt { receipt: Box<Receipt>, signature: Signature },
}

/// A run that is over, as the index keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct EndedRun {
    name: String,
    status: String,
}

/// One run in which this node takes part.
pub(crate) struct Part {
    pub(crate) participant: Participant,
    pub(crate) plan: Arc<Plan>,
    /// When it was offered.
    pub(crate) offered: Time,
    /// What it was ordered by.
    pub(crate) order: Option<SignedOrder>,
    /// Who consented, as the operator handed it in.
    pub(crate) consents: Vec<SignedConsent>,
    /// What the steward has decided.
    pub(crate) decision: Option<Decision>,
    /// What the coordinator signed of it.
    pub(crate) book: RecordBook,
    /// The latest record.
    pub(crate) record: Option<RoundRecord>,
}

impl Part {
    fn new(run: RunId, plan: Plan, offered: Time, ordered: Option<Ordered>) -> Self {
        let participant = Participant::new(run, plan.digest());
        let (order, consents) = match ordered {
            Some(Ordered { order, consents }) => (Some(order), consents),
            None => (None, Vec::new()),
        };
        Self {
            participant,
            plan: Arc::new(plan),
            offered,
            order,
            consents,
            decision: None,
            book: RecordBook::default(),
            record: None,
        }
    }

    /// The operator who ordered it.
    pub(crate) fn ordered_by(&self) -> &str {
        self.order.as_ref().map_or("-", |signed| &signed.order.by)
    }

    /// Steps the machine; what it releases is noted in the book.
    pub(crate) fn step(
        &mut self,
        event: ParticipantEvent,
    ) -> Result<Vec<ParticipantEffect>, Rejection> {
        let released = match &event {
            ParticipantEvent::Trained { contribution } => Some(contribution.clone()),
            _ => None,
        };
        let effects = self.participant.step(event)?;
        if let Some(contribution) = released {
            self.book.released(&contribution);
        }
        Ok(effects)
    }

    /// Takes a record that was checked by `client`, whose node this is.
    pub(crate) fn take(&mut self, client: &ClientId, record: RoundRecord) {
        let terms = Terms {
            federation: &record.federation,
            run: &record.run,
            plan: &self.plan,
            plan_digest: record.plan,
            me: Some(client),
        };
        self.book.take(&terms, &record);
        self.record = Some(record);
    }
}

/// A released update, of which the blob may be stored.
pub(crate) struct Stored {
    run: RunId,
    digest: [u8; 32],
    n_bytes: u64,
}

impl Stored {
    fn new(run: &RunId, contribution: &Contribution) -> Self {
        let n_bytes = contribution.delta_bytes();
        Self { run: run.clone(), digest: contribution.update.0, n_bytes }
    }
}

/// What a journal holds, folded.
#[derive(Default)]
pub(crate) struct Folded {
    pub(crate) parts: BTreeMap<RunId, Part>,
    pub(crate) ledger: Vec<LedgerEntry>,
    /// Updates that were released, oldest first.
    pub(crate) updates: Vec<Stored>,
    /// What left in each round of the runs that are not over.
    left: BytesOfRounds,
    /// Every order that was taken.
    pub(crate) orders: SeenOrders,
    /// When each run was opened in the ledger.
    pub(crate) opened: BTreeMap<String, Time>,
    /// How often the steward decided about each run.
    decisions: BTreeMap<RunId, usize>,
    /// What this client keeps of each run that is not over, and of those whose model has layers of its own.
    pub(crate) states: BTreeMap<RunId, StateDigest>,
    /// Runs that the ledger knows.
    debited: BTreeSet<String>,
}

impl Folded {
    /// Takes one record.
    pub(crate) fn fold(&mut self, record: comity_journal::Record) -> Result<(), JournalError> {
        match record.json::<Entry>()? {
            Entry::Offered { run, plan, now, order, consents } => {
                self.orders.note(&run, &plan, order.as_deref().map(|signed| &signed.order));
                self.opened.entry(run.to_string()).or_insert(now);
                let ordered = order.map(|order| Ordered { order: *order, consents });
                self.parts.insert(run.clone(), Part::new(run, *plan, now, ordered));
                Ok(())
            }
            Entry::Decided { run, decision } => {
                let part = self.parts.get_mut(&run);
                let part =
                    part.ok_or_else(|| record.refuse(format!("run {run} was never offered")))?;
                part.decision = Some(decision);
                *self.decisions.entry(run).or_default() += 1;
                Ok(())
            }
            Entry::Stepped { run, event } => self.step(&record, &run, event),
            Entry::Ledger { ledger, now } => {
                if let LedgerEntry::Opened { run, .. } = &ledger {
                    self.debited.insert(run.clone());
                    if let Some(now) = now {
                        self.opened.insert(run.clone(), now);
                    }
                }
                self.ledger.push(ledger);
                Ok(())
            }
            Entry::Released { ledger, run, event, state } => {
                self.ledger.push(ledger);
                if let Some(state) = state {
                    self.states.insert(run.clone(), state);
                }
                if let ParticipantEvent::Trained { contribution } = &event {
                    self.updates.push(Stored::new(&run, contribution));
                }
                self.step(&record, &run, event)
            }
            Entry::Left { departure } => {
                if let (Kind::Update, Some(run), Some(round)) =
                    (departure.kind, departure.run, departure.round)
                {
                    let n_bytes = departure.bytes + departure.offset.unwrap_or_default();
                    self.left.entry((run, round)).or_default().insert(departure.digest, n_bytes);
                }
                Ok(())
            }
            Entry::Receipt { receipt, .. } => {
                let part = self.part(&record, &receipt.run)?;
                part.book.take_receipt(&receipt);
                Ok(())
            }
            Entry::Record { client, record: of_round, .. } => {
                self.part(&record, &of_round.run)?.take(&client, *of_round);
                Ok(())
            }
            Entry::Breach { run, reason, .. } => {
                self.part(&record, &run)?.book.break_with(reason);
                Ok(())
            }
        }
    }

    /// How often the steward decided about `run`.
    pub(crate) fn n_decisions(&self, run: &RunId) -> usize {
        self.decisions.get(run).copied().unwrap_or_default()
    }

    fn part(
        &mut self,
        record: &comity_journal::Record,
        run: &RunId,
    ) -> Result<&mut Part, JournalError> {
        let never = || record.refuse(format!("run {run} was never offered"));
        self.parts.get_mut(run).ok_or_else(never)
    }

    fn step(
        &mut self,
        record: &comity_journal::Record,
        run: &RunId,
        event: ParticipantEvent,
    ) -> Result<(), JournalError> {
        let part = self
            .parts
            .get_mut(run)
            .ok_or_else(|| record.refuse(format!("run {run} was never offered")))?;
        let was_over = part.participant.ended().is_some();
        part.step(event).map_err(|e| record.refuse(e))?;
        // The ledger has no line of its own for a run's end: this one is it.
        if part.participant.ended().is_some() {
            self.left.retain(|(open, _), _| open != run);
            if !keeps_after_the_end(&part.plan) {
                self.states.remove(run);
            }
        }
        if !was_over && part.participant.ended().is_some() && self.debited.contains(run.as_str()) {
            self.ledger.push(LedgerEntry::Closed { run: run.to_string() });
        }
        Ok(())
    }
}

/// The journal, and the index that follows it. Whoever writes does so in the node's one task, in one go from
/// the record to the mark; the lock is for the type's sake.
#[derive(Clone)]
pub(crate) struct Books(Arc<Mutex<Volumes>>);

struct Volumes {
    journal: Journal,
    index: Index,
    /// Records that may wait for the next one, and reach the disk with it.
    deferred: Vec<Vec<u8>>,
}

impl Books {
    fn open(&self) -> MutexGuard<'_, Volumes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record of which the index keeps nothing.
    pub(crate) fn append(&self, entry: &Entry) -> anyhow::Result<()> {
        let mut books = self.open();
        books.write(entry)?;
        books.mark()
    }

    /// New books in `dir`.
    #[cfg(test)]
    pub(crate) fn open_empty(dir: &Path) -> Self {
        let (journal, _) = Journal::open(journal_path(dir)).unwrap();
        let (index, _) = Index::open(dir.join("index"), journal.head()).unwrap();
        Self(Arc::new(Mutex::new(Volumes { journal, index, deferred: Vec::new() })))
    }
}

impl Volumes {
    /// Makes `entry` durable, and what waited for it before.
    fn write(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let payload = serde_json::to_vec(entry).map_err(JournalError::Encode)?;
        let mut payloads = std::mem::take(&mut self.deferred);
        payloads.push(payload);
        self.journal.append_all(&payloads).map(drop)
    }

    fn put_if_ended(&self, run: &RunId, part: &Part) -> anyhow::Result<()> {
        if let Some(status) = part.participant.ended() {
            let ended = EndedRun { name: part.plan.name.clone(), status: status.to_owned() };
            self.index.put_json(ENDED, run.as_str(), &ended)?;
        }
        Ok(())
    }

    fn mark(&self) -> anyhow::Result<()> {
        let (seq, hash) = self.journal.head();
        Ok(self.index.mark_applied(seq, hash)?)
    }
}

/// The node's durable state; one process at a time.
pub(crate) struct Store {
    books: Books,
    blobs: Arc<BlobStore>,
    ledger: Ledger,
    /// Updates that may be stored, oldest first.
    updates: Vec<Stored>,
    updates_bytes_max: u64,
    /// What this client keeps of each open run, and of those whose model has layers of its own; the blobs are
    /// nowhere else.
    states: BTreeMap<RunId, StateDigest>,
    /// What left in each round of the open runs, when the store was opened.
    left: BytesOfRounds,
    orders: SeenOrders,
    opened: BTreeMap<String, Time>,
    _lock: DirLock,
}

impl Store {
    /// Opens everything in `dir` and replays the journal into the runs that are not over.
    pub(crate) fn open(
        dir: &Path,
        limit: Limit,
        updates_bytes_max: u64,
    ) -> anyhow::Result<(Self, BTreeMap<RunId, Part>)> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("folder {} cannot be made", dir.display()))?;
        let lock = DirLock::acquire(dir)?;
        let mut folded = Folded::default();
        let journal = Journal::open_with(journal_path(dir), |record| folded.fold(record))?;
        if journal.recovered_bytes() > 0 {
            warn!(bytes = journal.recovered_bytes(), "unfinished journal record removed");
        }
        let Folded { mut parts, ledger, updates, left, orders, opened, states, .. } = folded;
        let ledger = Ledger::replay(limit, ledger)?;
        let blobs = Arc::new(BlobStore::open(dir.join("blobs"))?);
        let (index, state) = Index::open(dir.join("index"), journal.head())?;
        if let Some(aside) = index.set_aside() {
            warn!(reason = aside.reason, moved_to = %aside.path.display(), "index set aside");
        }
        let books = Volumes { journal, index, deferred: Vec::new() };
        if state == IndexState::Fresh {
            for (run, part) in &parts {
                books.put_if_ended(run, part)?;
            }
            books.mark()?;
            info!(runs = parts.len(), "index rebuilt from the journal");
        }
        parts.retain(|_, part| part.participant.ended().is_none());
        let books = Books(Arc::new(Mutex::new(books)));
        let mut store = Self {
            books,
            blobs,
            ledger,
            updates,
            updates_bytes_max,
            states,
            orders,
            opened,
            left,
            _lock: lock,
        };
        store.sweep(&parts);
        Ok((store, parts))
    }

    /// Removes models that no round of `parts`, the open runs, needs, what was kept before a later round, and
    /// the oldest updates beyond what is kept. What cannot be removed now is found by the next sweep.
    pub(crate) fn sweep(&mut self, parts: &BTreeMap<RunId, Part>) {
        failpoint::reach("client::before_sweep");
        let open = || parts.values().map(|part| &part.participant).filter(|p| p.ended().is_none());
        // The coordinator may still ask for the last update of an open run.
        let due: BTreeSet<[u8; 32]> = open().filter_map(|p| Some(p.last()?.update.0)).collect();
        let is_open = |run: &RunId| parts.get(run).is_some_and(|p| p.participant.ended().is_none());
        let mut n_bytes: u64 = self.updates.iter().map(|update| update.n_bytes).sum();
        for of_open_runs in [false, true] {
            self.updates.retain(|update| {
                let may_go = is_open(&update.run) == of_open_runs && !due.contains(&update.digest);
                let goes = may_go && n_bytes > self.updates_bytes_max;
                n_bytes -= if goes { update.n_bytes } else { 0 };
                !goes
            });
        }
        let models = open().filter_map(|p| Some(p.task()?.model.0));
        let states = self.states.values().map(|state| state.0);
        let updates = self.updates.iter().map(|update| update.digest);
        let keep = updates.chain(models).chain(states).collect();
        match self.blobs.sweep(&keep) {
            Ok(swept) if swept.n_blobs > 0 => {
                debug!(blobs = swept.n_blobs, bytes = swept.n_bytes, "blobs removed");
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "blobs that no round needs could not be removed"),
        }
        failpoint::reach("client::after_sweep");
    }

    /// Notes an offered plan whose order is in order.
    pub(crate) fn offered(
        &mut self,
        run: &RunId,
        plan: &Plan,
        ordered: Ordered,
        now: Time,
    ) -> anyhow::Result<Part> {
        self.books.append(&Entry::Offered {
            run: run.clone(),
            plan: Box::new(plan.clone()),
            now,
            order: Some(Box::new(ordered.order.clone())),
            consents: ordered.consents.clone(),
        })?;
        self.orders.note(run, plan, Some(&ordered.order.order));
        Ok(Part::new(run.clone(), plan.clone(), now, Some(ordered)))
    }

    /// The orders that were taken before.
    pub(crate) fn orders(&self) -> &SeenOrders {
        &self.orders
    }

    /// Notes what the steward decided about `run`, which is open.
    pub(crate) fn decided(&mut self, run: &RunId, decision: &Decision) -> anyhow::Result<()> {
        let decision = decision.clone();
        self.books.append(&Entry::Decided { run: run.clone(), decision })
    }

    /// ε of the last year's runs and of `run` with `schedule` together.
    pub(crate) fn epsilon_year(&self, run: &RunId, schedule: &[Mechanism], now: Time) -> f64 {
        year::epsilon(&self.ledger, &self.opened, now, Some(run.as_str()), schedule)
    }

    /// Makes a record durable.
    pub(crate) fn append(&self, entry: &Entry) -> anyhow::Result<()> {
        self.books.append(entry)
    }

    /// Makes a record durable with the next one: nothing that follows from it can leave before, because whatever
    /// leaves has a record of its own.
    pub(crate) fn defer(&self, entry: Entry) {
        let payload = serde_json::to_vec(&entry).expect("papers are text and whole numbers");
        self.books.open().deferred.push(payload);
    }

    /// Makes a step of `part` durable, after the fact that it was accepted.
    pub(crate) fn stepped(
        &mut self,
        run: &RunId,
        part: &Part,
        event: ParticipantEvent,
    ) -> anyhow::Result<()> {
        let mut books = self.books.open();
        books.write(&Entry::Stepped { run: run.clone(), event })?;
        if part.participant.ended().is_some() {
            if !keeps_after_the_end(&part.plan) {
                self.states.remove(run);
            }
            self.ledger.close(run.as_str());
        }
        books.put_if_ended(run, part)?;
        books.mark()
    }

    /// Debits the ledger durably for one round.
    pub(crate) fn reserve(
        &mut self,
        key: ReservationKey,
        charge: Charge,
        now: Time,
    ) -> anyhow::Result<Reservation> {
        if !self.ledger.knows(&key.run) {
            self.opened.insert(key.run.clone(), now);
        }
        let mut books = self.books.open();
        let wrap = |ledger| Entry::Ledger { ledger, now: Some(now) };
        let mut lines = Lines { books: &mut books, wrap };
        let is_private = !charge.is_exempt();
        let reservation = self.ledger.reserve(&mut lines, key, charge)?;
        books.mark()?;
        if is_private {
            // A journal that loses this debit is to be noticed, even if everything ends at this instant.
            books.index.flush()?;
        }
        Ok(reservation)
    }

    /// Stores a released update and what the client keeps after its round, and commits both with the event
    /// in one record; only then may the update leave.  The state has no way out.
    pub(crate) fn released(
        &mut self,
        update: &Update,
        state: Option<&ClientState>,
    ) -> anyhow::Result<ParticipantEvent> {
        let contribution = update.contribution().clone();
        let state =
            state.map(|state| self.blobs.put(&state.to_bytes()).map(StateDigest)).transpose()?;
        let stored = self.blobs.put(update.delta_bytes())?;
        assert_eq!(stored, contribution.update.0, "both are BLAKE3 of the same bytes");
        failpoint::reach("client::before_commit");
        self.updates.push(Stored::new(&update.run, &contribution));
        let event = ParticipantEvent::Trained { contribution };
        let run = update.run.clone();
        let mut books = self.books.open();
        let mut lines = Lines {
            books: &mut books,
            wrap: |ledger| Entry::Released {
                ledger,
                run: run.clone(),
                event: event.clone(),
                state,
            },
        };
        self.ledger.commit(&mut lines, update.release.receipt(), stored)?;
        books.mark()?;
        if let Some(state) = state {
            self.states.insert(run, state);
        }
        Ok(event)
    }

    /// What this client keeps of `run`, which is open: after the last round whose update it released.
    pub(crate) fn state(&self, run: &RunId) -> Option<StateDigest> {
        self.states.get(run).copied()
    }

    /// Whether `run` is over as far as this node knows.
    pub(crate) fn has_ended(&self, run: &RunId) -> anyhow::Result<bool> {
        Ok(self.books.open().index.get_json::<EndedRun>(ENDED, run.as_str())?.is_some())
    }

    /// The way out, which writes into the same journal.
    pub(crate) fn egress(&mut self, clock: Clock, bytes_out_round_max: Option<u64>) -> Egress {
        let left = std::mem::take(&mut self.left);
        Egress::new(self.books.clone(), clock, bytes_out_round_max, left)
    }

    /// The models and updates.
    pub(crate) fn blobs(&self) -> Arc<BlobStore> {
        Arc::clone(&self.blobs)
    }

    /// The privacy that was spent.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

/// Whether what a client keeps is of use after the run: the model is not whole without its local layers, while
/// control variates have done their work.
fn keeps_after_the_end(plan: &Plan) -> bool {
    plan.model_manifest().is_ok_and(|manifest| manifest.n_local() > 0)
}

/// Where the journal of a node lies.
pub(crate) fn journal_path(dir: &Path) -> std::path::PathBuf {
    dir.join("journal.log")
}

/// Writes ledger entries as lines of the journal.
struct Lines<'a, W> {
    books: &'a mut Volumes,
    wrap: W,
}

impl<W: Fn(LedgerEntry) -> Entry> LedgerStore for Lines<'_, W> {
    fn append(&mut self, entry: &LedgerEntry) -> Result<(), String> {
        let entry = (self.wrap)(entry.clone());
        self.books.write(&entry).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_privacy::Budget;

    fn limit() -> Limit {
        Limit { budget: Some(Budget::new(8.0, 1e-5).unwrap()), exempt_allowed: false }
    }

    /// What is on the disk the moment a debit returns, with an older journal put in its place.
    #[test]
    fn a_journal_that_lost_a_debit_is_noticed_from_the_debit_on() {
        let dir = tempfile::tempdir().unwrap();
        let (state, copy) = (dir.path().join("state"), dir.path().join("copy"));
        let (mut store, _) = Store::open(&state, limit(), u64::MAX).unwrap();
        for round in 1..=8 {
            let older = std::fs::read(journal_path(&state)).unwrap();
            let charge = Charge::single(
                vec![Mechanism::Zcdp { rho: 0.01 }],
                [1; 32],
                Some([round as u8; 32]),
            );
            let key = ReservationKey { run: format!("run-{round}"), round };
            let _paid = store.reserve(key, charge, Time(0)).unwrap();
            let _ = std::fs::remove_dir_all(&copy);
            std::fs::create_dir_all(copy.join("index")).unwrap();
            for name in ["db", "conf"] {
                let from = state.join("index").join(name);
                std::fs::copy(from, copy.join("index").join(name)).unwrap();
            }
            std::fs::write(journal_path(&copy), older).unwrap();
            let Err(error) = Store::open(&copy, limit(), u64::MAX) else {
                panic!("debit {round} was forgotten")
            };
            assert!(error.to_string().contains("was applied before"), "{error:#}");
        }
    }
}
