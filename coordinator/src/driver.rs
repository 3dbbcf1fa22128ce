//! The one task that owns every run: takes requests in turn, steps the machines, makes each step
//! durable before its effects, and wakes those who wait for news.
//!
//! Because one task owns the machines there is no lock around them.  Those who follow (clients
//! on their stream, operators who watch) are told only *that* something changed and ask for the
//! state, so a slow or lost follower can miss nothing.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use comity_certs::Clock;
use comity_federation::{
    Admission, Aggregation, ClientId, Command, Contribution, Effect, Event, Launched, ModelDigest,
    OrderRefusal, Outcome, Plan, PlanDigest, PlanError, Receipt, Rejection, RoundRecord, Run,
    RunId, RunReport, SignedRecord, Task, Time, UpdateDigest,
};
use comity_journal::{BlobStore, failpoint};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::records::Waiting;
pub(crate) use self::records::{Countersigned, RecordsHeld};
use crate::aggregate;
use crate::membership::{Answer, Ask, Asked, Members, Membership};
use crate::papers::Papers;
use crate::presence::Presence;
use crate::registry::{MemberName, Refusal};
use crate::store::{Entry, Launch, Store, recorded};

/// Requests that wait for the driver; a service waits in turn when it is full.
const REQUESTS_MAX: usize = 256;
/// Longest sleep between ticks.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How long a fold that the disk refused waits before it is tried again.
const FOLD_PAUSE: Duration = Duration::from_secs(3);

/// Why the driver did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Order(#[from] OrderRefusal),
    #[error("there is no run {0}; `run list` shows those there are")]
    UnknownRun(RunId),
    #[error("the coordinator cannot store anything: {0}; see its log")]
    Storage(String),
    #[error("round {round} of run {run} has no record")]
    NoRecord { run: RunId, round: u32 },
    #[error("the coordinator no longer has the bytes of update {0}; send it again")]
    BytesGone(UpdateDigest),
    #[error(transparent)]
    Membership(Box<Refusal>),
    #[error("the coordinator cannot make a certificate; its operator sees the reason in its log")]
    NoCertificate,
    #[error("the coordinator is stopping; try again when it is back")]
    Stopping,
}

/// What a client should know of one run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Assignment {
    /// The plan, which the client has not answered yet.
    Offer {
        run: RunId,
        plan: Arc<Plan>,
        digest: PlanDigest,
        closes: Option<Time>,
        /// What the run was launched by; a run of an earlier version has none.
        launch: Option<Arc<Launch>>,
    },
    /// What happened in a round, with other clients' signatures under the record before.
    Record { run: RunId, record: Arc<SignedRecord> },
    /// A round that waits for the client.
    Train(Task),
    /// The run is over.
    Ended { report: RunReport },
}

/// An update that would be accepted.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) admission: Admission,
    /// The plan's, for what is to be looked at before it counts.
    pub(crate) aggregation: Aggregation,
}

type Reply<T> = oneshot::Sender<Result<T, DriverError>>;

enum Request {
    Launch {
        plan: Box<Plan>,
        launch: Box<Launch>,
        reply: Reply<(RunId, PlanDigest)>,
    },
    Step {
        run: RunId,
        event: Event,
        by: Option<String>,
        reply: Reply<bool>,
    },
    Admit {
        run: RunId,
        client: ClientId,
        contribution: Contribution,
        reply: Reply<Admitted>,
    },
    Assignments {
        client: ClientId,
        open: Vec<RunId>,
        held: RecordsHeld,
        reply: Reply<Vec<Assignment>>,
    },
    Receipt {
        run: RunId,
        client: ClientId,
        update: UpdateDigest,
        reply: Reply<Option<Receipt>>,
    },
    Record {
        run: RunId,
        round: u32,
        client: ClientId,
        reply: Reply<RoundRecord>,
    },
    Countersigned {
        signed: Countersigned,
        reply: Reply<()>,
    },
    LaunchOf {
        run: RunId,
        reply: Reply<(Launched, Time)>,
    },
    Records {
        run: RunId,
        reply: Reply<Vec<SignedRecord>>,
    },
    Plan {
        run: RunId,
        reply: Reply<Plan>,
    },
    Report {
        run: RunId,
        reply: Reply<RunReport>,
    },
    Reports {
        reply: Reply<Vec<RunReport>>,
    },
    Folded {
        run: RunId,
        round: u32,
        folded: anyhow::Result<Folded>,
    },
    Discard {
        update: UpdateDigest,
    },
    Membership {
        ask: Box<Ask>,
        reply: Reply<(Answer, Vec<RunId>)>,
    },
}

/// A handle by which services reach the driver.
#[derive(Clone)]
pub(crate) struct DriverHandle {
    requests: mpsc::Sender<Request>,
    changes: watch::Receiver<u64>,
    presence: Presence,
    papers: Papers,
    blobs: Arc<BlobStore>,
    members: Members,
}

impl DriverHandle {
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, DriverError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| DriverError::Stopping)?;
        answer.await.map_err(|_| DriverError::Stopping)?
    }

    /// Launches a run of `plan` by the order in `launch`, which was checked.
    pub(crate) async fn launch(
        &self,
        plan: Plan,
        launch: Launch,
    ) -> Result<(RunId, PlanDigest), DriverError> {
        let (plan, launch) = (Box::new(plan), Box::new(launch));
        self.ask(|reply| Request::Launch { plan, launch, reply }).await
    }

    /// Gives `event` to `run`; returns whether anything changed.
    pub(crate) async fn step(&self, run: RunId, event: Event) -> Result<bool, DriverError> {
        self.ask(|reply| Request::Step { run, event, by: None, reply }).await
    }

    /// Gives `command` of the operator `by` to `run`; returns whether anything changed.
    pub(crate) async fn order(
        &self,
        run: RunId,
        command: Command,
        by: String,
    ) -> Result<bool, DriverError> {
        let event = Event::Ordered { command };
        self.ask(|reply| Request::Step { run, event, by: Some(by), reply }).await
    }

    /// Whether an update would be accepted, before its bytes are taken.
    pub(crate) async fn admit(
        &self,
        run: RunId,
        client: ClientId,
        contribution: Contribution,
    ) -> Result<Admitted, DriverError> {
        self.ask(|reply| Request::Admit { run, client, contribution, reply }).await
    }

    /// What `client` should know now; `open` are the runs that it believes to be open, `held` the latest
    /// records that it holds.
    pub(crate) async fn assignments(
        &self,
        client: ClientId,
        open: Vec<RunId>,
        held: RecordsHeld,
    ) -> Result<Vec<Assignment>, DriverError> {
        self.ask(|reply| Request::Assignments { client, open, held, reply }).await
    }

    /// Has the bytes of an update removed that was refused when they had come, unless a run needs them.
    pub(crate) async fn discard(&self, update: UpdateDigest) {
        // If the driver is gone, the next start removes them.
        let _ = self.requests.send(Request::Discard { update }).await;
    }

    /// The plan of a run, open or ended.
    pub(crate) async fn plan(&self, run: RunId) -> Result<Plan, DriverError> {
        self.ask(|reply| Request::Plan { run, reply }).await
    }

    /// The report of a run, open or ended.
    pub(crate) async fn report(&self, run: RunId) -> Result<RunReport, DriverError> {
        self.ask(|reply| Request::Report { run, reply }).await
    }

    /// All runs, without their rounds.
    pub(crate) async fn reports(&self) -> Result<Vec<RunReport>, DriverError> {
        self.ask(|reply| Request::Reports { reply }).await
    }

    /// Asks something of the registry; with the answer come the runs from which a client was excluded.
    pub(crate) async fn membership(&self, ask: Ask) -> Result<(Answer, Vec<RunId>), DriverError> {
        self.ask(|reply| Request::Membership { ask: Box::new(ask), reply }).await
    }

    /// Who belongs here.
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    /// Changes whenever any run does; closes when the coordinator stops.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Who is connected.
    pub(crate) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// What the coordinator signs with.
    pub(crate) fn papers(&self) -> &Papers {
        &self.papers
    }

    /// The models and updates.
    pub(crate) fn blobs(&self) -> &Arc<BlobStore> {
        &self.blobs
    }
}

/// A round's model and, of round 0, the sums of its statistics.
type Folded = (ModelDigest, Option<Vec<i64>>);

/// The driver; [`Driver::run`] is its task.
pub(crate) struct Driver {
    /// The time of the runs when the driver was made, and when that was: from then on it passes as
    /// durations do, so that a clock that is set back or forward neither stretches nor cuts a round.
    opened: (Time, Instant),
    papers: Papers,
    store: Store,
    runs: BTreeMap<RunId, Run>,
    requests: mpsc::Receiver<Request>,
    /// To hand to background folds.
    to_self: mpsc::WeakSender<Request>,
    changes: watch::Sender<u64>,
    presence: Presence,
    /// Runs whose fold the disk refused, and when it is tried again.
    fold_again: BTreeMap<RunId, Instant>,
    /// Countersignatures that are not on the disk yet.
    waiting: Waiting,
    membership: Membership,
}

impl Driver {
    /// A driver over what the store replayed, and a handle to it.
    pub(crate) fn new(
        clock: &Clock,
        papers: Papers,
        store: Store,
        runs: BTreeMap<RunId, Run>,
        membership: Membership,
    ) -> (Self, DriverHandle) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (changes, news) = watch::channel(0);
        let presence = Presence::new(changes.clone());
        let handle = DriverHandle {
            requests: sender.clone(),
            changes: news,
            presence: presence.clone(),
            papers: papers.clone(),
            blobs: store.blobs(),
            members: membership.members(),
        };
        let to_self = sender.downgrade();
        // A clock that was set back while the coordinator was gone must not repeat a past.
        let opened = (clock.now().max(store.last()), Instant::now());
        let fold_again = BTreeMap::new();
        let driver = Self {
            opened,
            papers,
            store,
            runs,
            requests,
            to_self,
            changes,
            presence,
            fold_again,
            waiting: Waiting::default(),
            membership,
        };
        (driver, handle)
    }

    /// Serves requests until every handle is gone or `stop` fires.
    ///
    /// # Errors
    /// If something cannot be made durable: nothing more may then be promised to anybody.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        for run in self.runs.values() {
            info!(run = %run.id(), status = run.summary().status.as_str(), "run resumed");
            if let Some(effect @ Effect::Aggregate { .. }) = run.pending() {
                self.perform(run.id(), run.plan(), effect);
            }
        }
        self.exclude_revoked()?;
        loop {
            self.membership.keep_lists(self.now());
            let wait = self.until_next_deadline();
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request)?,
                    None => return Ok(()),
                },
                () = tokio::time::sleep(wait) => self.tick()?,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
        }
    }

    /// The time of the runs.
    fn now(&self) -> Time {
        let (opened, at) = self.opened;
        opened.after(at.elapsed())
    }

    fn until_next_deadline(&self) -> Duration {
        let now = self.now();
        let folds = self.fold_again.values().copied().chain(self.countersignatures_due());
        let folds = folds.map(|at| at.saturating_duration_since(Instant::now()));
        self.runs
            .values()
            .filter_map(Run::deadline)
            .map(|deadline| Duration::from_millis(deadline.0.saturating_sub(now.0)))
            .chain(folds)
            .min()
            .unwrap_or(SLEEP_MAX)
            .min(SLEEP_MAX)
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.flush_countersignatures()?;
        let now = self.now();
        let due: Vec<RunId> = self
            .runs
            .values()
            .filter(|run| run.deadline().is_some_and(|deadline| deadline <= now))
            .map(|run| run.id().clone())
            .collect();
        for run in due {
            if let Err(refusal) = self.step(&run, Event::Tick)? {
                warn!(%run, %refusal, "tick refused");
            }
        }
        let again = self.fold_again.extract_if(.., |_, at| *at <= Instant::now());
        for (id, _) in again.collect::<Vec<_>>() {
            // Unless the operator has aborted it.
            if let Some(run) = self.runs.get(&id)
                && let Some(effect @ Effect::Aggregate { .. }) = run.pending()
            {
                self.perform(&id, run.plan(), effect);
            }
        }
        Ok(())
    }

    fn serve(&mut self, request: Request) -> anyhow::Result<()> {
        // A reply that nobody waits for any more is dropped on purpose.
        match request {
            Request::Launch { plan, launch, reply } => {
                let _ = reply.send(self.launch(*plan, *launch)?);
            }
            Request::Step { run, event, by, reply } => {
                let submitted = match &event {
                    Event::Submitted { client, contribution } => {
                        Some((client.clone(), contribution.round, contribution.update))
                    }
                    _ => None,
                };
                let answer = self.step_by(&run, event, by)?;
                if let Some((client, round, update)) = submitted {
                    if let Err(DriverError::Rejected(refusal)) = &answer {
                        self.note_copy(&run, client, round, refusal)?;
                    }
                    if !matches!(answer, Ok(true)) {
                        // Its bytes have come and are not wanted, or no longer.
                        self.discard(update);
                    }
                }
                failpoint::reach("coordinator::before_reply");
                let _ = reply.send(answer);
            }
            Request::Admit { run, client, contribution, reply } => {
                let _ = reply.send(self.admit(&run, client, &contribution)?);
            }
            Request::Assignments { client, open, held, reply } => {
                let _ = reply.send(self.assignments(&client, &open, &held));
            }
            Request::Receipt { run, client, update, reply } => {
                let _ = reply.send(self.receipt(&run, &client, update));
            }
            Request::Record { run, round, client, reply } => {
                let _ = reply.send(self.record(&run, round, &client));
            }
            Request::Countersigned { signed, reply } => self.countersigned(signed, reply),
            Request::LaunchOf { run, reply } => {
                let launch = self.store.launch_of(&run).cloned();
                let launch = launch.map(|launch| (launch, self.now()));
                let _ = reply.send(launch.ok_or(DriverError::UnknownRun(run)));
            }
            Request::Records { run, reply } => {
                let _ = reply.send(self.records(&run));
            }
            Request::Plan { run, reply } => {
                let answer = self.plan(&run);
                let _ = reply.send(answer);
            }
            Request::Report { run, reply } => {
                let _ = reply.send(self.report(&run));
            }
            Request::Reports { reply } => {
                let _ = reply.send(self.store.reports().map_err(|e| storage(&e)));
            }
            Request::Folded { run, round, folded } => self.folded(&run, round, folded)?,
            Request::Discard { update } => self.discard(update),
            Request::Membership { ask, reply } => {
                let answer = self.change_members(*ask)?;
                failpoint::reach("coordinator::before_membership_reply");
                let _ = reply.send(answer);
            }
        }
        Ok(())
    }

    /// Answers what is asked of the registry; whoever is revoked takes part in no open run any more.
    fn change_members(
        &mut self,
        ask: Ask,
    ) -> anyhow::Result<Result<(Answer, Vec<RunId>), DriverError>> {
        let now = self.now();
        let revokes = matches!(ask.what, Asked::Revoke { .. });
        let answer = match self.membership.answer(&mut self.store, now, ask)? {
            Ok(answer) => answer,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let runs = if revokes { self.exclude_revoked()? } else { Vec::new() };
        self.announce();
        Ok(Ok((answer, runs)))
    }

    /// Excludes clients that were revoked from the runs that are open; returns which those were.
    fn exclude_revoked(&mut self) -> anyhow::Result<Vec<RunId>> {
        let registry = self.membership.members().now();
        let revoked: Vec<(&ClientId, String, String)> = registry
            .members()
            .filter_map(|(name, member)| match (name, &member.revoked) {
                (MemberName::Client(client), Some(decision)) => {
                    let reason = format!("revoked by operator {}: {}", decision.by, decision.why);
                    Some((client, reason, decision.by.clone()))
                }
                _ => None,
            })
            .collect();
        let open: Vec<RunId> = self.runs.keys().cloned().collect();
        let mut excluded = Vec::new();
        for run in open {
            for (client, reason, by) in &revoked {
                let named = |run: &Run| run.plan().client(client).is_some();
                if !self.runs.get(&run).is_some_and(named) {
                    continue;
                }
                let command =
                    Command::Exclude { client: (*client).clone(), reason: reason.clone() };
                // One that was excluded before changes nothing, and is refused at most.
                let ordered = Event::Ordered { command };
                if let Ok(true) = self.step_by(&run, ordered, Some(by.clone()))? {
                    excluded.push(run.clone());
                }
            }
        }
        Ok(excluded)
    }

    fn discard(&self, update: UpdateDigest) {
        self.store.remove(BTreeSet::from([update.0]), self.runs.values());
    }

    fn launch(
        &mut self,
        plan: Plan,
        launch: Launch,
    ) -> anyhow::Result<Result<(RunId, PlanDigest), DriverError>> {
        let (id, by) = (launch.order.order.run.clone(), launch.order.order.by.clone());
        if !matches!(self.report(&id), Err(DriverError::UnknownRun(_))) {
            return Ok(Err(OrderRefusal::AlreadyLaunched { run: id }.into()));
        }
        // The same calibration that every client will do: an impossible target stops here.
        if let Err(refusal) = plan.check_deployable().and_then(|()| plan.privacy_plans().map(drop))
        {
            return Ok(Err(refusal.into()));
        }
        let now = self.now();
        let manifest = match plan.manifest() {
            Ok(manifest) => manifest,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        let start = aggregate::first_model(&self.store.blobs(), &manifest, plan.seed)
            .context("the first model cannot be stored")?;
        let digest = plan.digest();
        failpoint::reach("coordinator::before_launch");
        self.append(vec![Entry::Launched {
            run: id.clone(),
            plan: Box::new(plan.clone()),
            start,
            now,
            by: by.clone(),
            order: Some(Box::new(launch.order.clone())),
            consents: launch.consents.clone(),
        }])?;
        self.store.launched(&id, launch);
        failpoint::reach("coordinator::after_launch");
        let run = Run::new(id.clone(), plan, start, now);
        self.store.index_launched(&run)?;
        info!(run = %id, plan = %digest, by, "run launched");
        self.runs.insert(id.clone(), run);
        self.announce();
        Ok(Ok((id, digest)))
    }

    /// Steps `id` with `event`; the outer error is fatal, the inner one is the partner's.
    fn step(&mut self, id: &RunId, event: Event) -> anyhow::Result<Result<bool, DriverError>> {
        self.step_by(id, event, None)
    }

    /// [`step`](Self::step), by order of an operator.
    fn step_by(
        &mut self,
        id: &RunId,
        event: Event,
        by: Option<String>,
    ) -> anyhow::Result<Result<bool, DriverError>> {
        let now = self.now();
        let Some(run) = self.runs.get_mut(id) else {
            return Ok(Err(match self.report(id) {
                Ok(report) => {
                    let how = report.reason.unwrap_or_else(|| report.status.as_str().to_owned());
                    Rejection::Ended(how).into()
                }
                Err(unknown) => unknown,
            }));
        };
        // Between its last byte and now, another run may have been done with the very same bytes.
        if let Event::Submitted { client, contribution } = &event
            && run.admit(client, contribution) == Ok(Admission::Wanted)
            && !self.store.blobs().contains(&contribution.update.0)
        {
            return Ok(Err(DriverError::BytesGone(contribution.update)));
        }
        let effects = match run.step(event.clone(), now) {
            Ok(effects) => effects,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        if effects.is_empty() {
            return Ok(Ok(false));
        }
        log(id, &event);
        let ended = run.outcome().is_some();
        let closes_a_round = matches!(event, Event::Aggregated { .. });
        let mut effects = effects.into_iter();
        assert_eq!(effects.next(), Some(Effect::Record), "Record comes first");
        failpoint::reach("coordinator::before_record");
        let signed = if closes_a_round { self.sign_last_round(id) } else { None };
        let mut entries = vec![Entry::Stepped { run: id.clone(), now, event, by }];
        entries.extend(signed.as_ref().map(recorded));
        self.append(entries)?;
        failpoint::reach("coordinator::after_record");
        if let Some(signed) = &signed {
            self.store.put_record(signed)?;
        }
        let run = &self.runs[id];
        self.store.index(run)?;
        failpoint::reach("coordinator::after_index");
        for effect in effects {
            self.perform(id, run.plan(), effect);
        }
        if ended && let Some(run) = self.runs.remove(id) {
            self.store.retire(&run, self.runs.values());
        } else if closes_a_round {
            self.store.retire(&self.runs[id], self.runs.values());
        }
        self.announce();
        Ok(Ok(true))
    }

    /// The record of the round of `id` that has just got its model.
    fn sign_last_round(&self, id: &RunId) -> Option<SignedRecord> {
        let run = &self.runs[id];
        let previous = self.store.latest_record(id).map(|(_, digest)| digest);
        // The next round may have been opened by the same step.
        let rounds = run.rounds_from(run.n_rounds().saturating_sub(2));
        let closed = rounds.iter().rfind(|round| round.model.is_some())?;
        self.papers.record(id, run.plan_digest(), previous, closed)
    }

    fn perform(&self, id: &RunId, plan: &Plan, effect: Effect) {
        match effect {
            Effect::Record => {}
            // `launch` takes no plan that asks for it.
            Effect::Draw { round, .. } => {
                error!(run = %id, round, "no cohort is drawn in secret here")
            }
            Effect::Invite { round, cohort, .. } => {
                info!(run = %id, round, clients = cohort.len(), "round opened");
            }
            Effect::Aggregate { round, base, updates, gain } => {
                let blobs = self.store.blobs();
                let plan = plan.clone();
                let step = plan.server_step().expect("the plan was validated");
                let run = id.clone();
                let Some(to_self) = self.to_self.upgrade() else { return };
                tokio::task::spawn_blocking(move || {
                    let folded = if round == 0 {
                        aggregate::statistics(&blobs, &plan, base, &updates)
                            .map(|(model, sums)| (model, Some(sums)))
                    } else {
                        aggregate::fold(
                            &blobs,
                            step,
                            plan.update_encoding(round),
                            base,
                            &updates,
                            gain,
                        )
                        .map(|model| (model, None))
                    };
                    // If the driver is gone, the fold is done again after the restart.
                    let _ = to_self.blocking_send(Request::Folded { run, round, folded });
                });
            }
            Effect::Finish(Outcome::Finished(model)) => {
                info!(run = %id, %model, "run finished");
            }
            Effect::Finish(Outcome::Aborted(reason)) => warn!(run = %id, reason, "run aborted"),
        }
    }

    fn folded(
        &mut self,
        run: &RunId,
        round: u32,
        folded: anyhow::Result<Folded>,
    ) -> anyhow::Result<()> {
        let event = match folded {
            Ok((model, statistics)) => Event::Aggregated { round, model, statistics },
            Err(cause) if aggregate::is_of_the_disk(&cause) => {
                error!(
                    %run, round, cause = format!("{cause:#}"), again_in_s = FOLD_PAUSE.as_secs(),
                    "round could not be aggregated yet; it is tried again until the disk is mended \
                     or `run abort` ends the run"
                );
                self.fold_again.insert(run.clone(), Instant::now() + FOLD_PAUSE);
                return Ok(());
            }
            Err(cause) => {
                error!(%run, round, cause = format!("{cause:#}"), "round could not be aggregated");
                let reason = format!("round {round} could not be aggregated: {cause:#}");
                Event::Ordered { command: Command::Abort { reason } }
            }
        };
        if let Err(refusal) = self.step(run, event)? {
            // The operator may have aborted the run meanwhile.
            info!(%run, round, %refusal, "aggregated model not wanted");
        }
        Ok(())
    }

    fn assignments(
        &self,
        client: &ClientId,
        open: &[RunId],
        held: &RecordsHeld,
    ) -> Result<Vec<Assignment>, DriverError> {
        let mut assignments = Vec::new();
        for run in self.runs.values() {
            if run.plan().client(client).is_none() {
                continue;
            }
            if !run.has_answered(client) {
                assignments.push(Assignment::Offer {
                    run: run.id().clone(),
                    plan: Arc::new(run.plan().clone()),
                    digest: run.plan_digest(),
                    closes: run.deadline(),
                    launch: self.store.launch(run.id()),
                });
            }
            if run.is_member(client) {
                let (id, first_round) = (run.id(), run.plan().first_round());
                let held = held.get(id).copied();
                assignments.extend(self.records_after(id, client, held, first_round)?);
            }
            assignments.extend(run.task(client).map(Assignment::Train));
        }
        // In the order in which they were given: a client takes no order that is older than one it has seen.
        assignments.sort_by_key(|assignment| match assignment {
            Assignment::Offer { launch: Some(launch), .. } => launch.order.order.issued,
            _ => Time::default(),
        });
        for run in open.iter().filter(|run| !self.runs.contains_key(run)) {
            match self.report(run) {
                Ok(report) if report.clients.iter().any(|c| c.client == *client) => {
                    let standing = report.clients.iter().find(|c| c.client == *client);
                    if standing.is_some_and(|c| Self::is_shown_records(c.standing)) {
                        let first_round = self.plan(run)?.first_round();
                        let held = held.get(run).copied();
                        assignments.extend(self.records_after(run, client, held, first_round)?);
                    }
                    assignments.push(Assignment::Ended { report });
                }
                Ok(_) | Err(DriverError::UnknownRun(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(assignments)
    }

    fn admit(
        &mut self,
        id: &RunId,
        client: ClientId,
        contribution: &Contribution,
    ) -> anyhow::Result<Result<Admitted, DriverError>> {
        let Some(run) = self.runs.get(id) else {
            return Ok(self.admit_to_ended(id, &client, contribution));
        };
        let aggregation = run.plan().aggregation.clone();
        Ok(match run.admit(&client, contribution) {
            Ok(admission) => Ok(Admitted { admission, aggregation }),
            Err(refusal) => {
                self.note_copy(id, client, contribution.round, &refusal)?;
                Err(refusal.into())
            }
        })
    }

    /// A copy of another's update is not only refused: the round's record says so.
    fn note_copy(
        &mut self,
        run: &RunId,
        client: ClientId,
        round: u32,
        refusal: &Rejection,
    ) -> anyhow::Result<()> {
        if *refusal == Rejection::Copied {
            let reason = refusal.to_string();
            // If the round has closed meanwhile, there is nothing left to say.
            let _ = self.step(run, Event::Refused { client, round, reason })?;
        }
        Ok(())
    }

    /// An update for a run that has ended is welcome only if it was already counted.
    fn admit_to_ended(
        &self,
        run: &RunId,
        client: &ClientId,
        contribution: &Contribution,
    ) -> Result<Admitted, DriverError> {
        let report = self.report(run)?;
        if report.history.iter().any(|round| round.counts(client, contribution.update)) {
            let aggregation = self.plan(run)?.aggregation;
            return Ok(Admitted { admission: Admission::AlreadyHere, aggregation });
        }
        let how = report.reason.unwrap_or_else(|| report.status.as_str().to_owned());
        Err(Rejection::Ended(how).into())
    }

    fn plan(&self, run: &RunId) -> Result<Plan, DriverError> {
        if let Some(run) = self.runs.get(run) {
            return Ok(run.plan().clone());
        }
        self.store
            .plan(run)
            .map_err(|e| storage(&e))?
            .ok_or_else(|| DriverError::UnknownRun(run.clone()))
    }

    fn report(&self, run: &RunId) -> Result<RunReport, DriverError> {
        if let Some(run) = self.runs.get(run) {
            let mut report = run.report();
            for client in &mut report.clients {
                client.connected = Some(self.presence.is_connected(&client.client));
            }
            return Ok(report);
        }
        self.store
            .report(run)
            .map_err(|e| storage(&e))?
            .ok_or_else(|| DriverError::UnknownRun(run.clone()))
    }

    fn announce(&self) {
        self.changes.send_modify(|version| *version += 1);
    }
}

fn storage(cause: &anyhow::Error) -> DriverError {
    DriverError::Storage(format!("{cause:#}"))
}

/// What an operator would write in a logbook, and `debug` for the rest.
fn log(run: &RunId, event: &Event) {
    match event {
        Event::CheckedIn { client, .. } => info!(%run, %client, "client checked in"),
        Event::Declined { client, reason } => warn!(%run, %client, reason, "client declined"),
        Event::Drawn { round, .. } => info!(%run, round, "cohort drawn"),
        Event::Submitted { client, contribution } => {
            info!(%run, %client, round = contribution.round, "contribution accepted");
        }
        Event::Withdrew { client, round, reason } => {
            warn!(%run, %client, round, reason, "client withdrew");
        }
        Event::Refused { client, round, reason } => {
            warn!(%run, %client, round, reason, "update refused");
        }
        Event::Aggregated { round, model, .. } => {
            info!(%run, round, model = model.short(), "model published");
        }
        Event::Ordered { command: Command::Abort { .. } } => info!(%run, "order to abort taken"),
        Event::Ordered { command: Command::Exclude { client, reason } } => {
            warn!(%run, %client, reason, "client excluded");
        }
        Event::Ordered { command: Command::Readmit { client, reason } } => {
            info!(%run, %client, reason, "client readmitted");
        }
        Event::Tick => info!(%run, "deadline passed"),
    }
}
