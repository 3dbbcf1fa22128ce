//! The one task that owns every [`Participant`](comity_federation::Participant) of this node:
//! follows the coordinator, steps the machines, makes each step durable before its effects,
//! trains one round at a time, and comes back after every loss of the connection.

mod papers;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use comity_burn_models::{LocalResult, check_units};
use comity_datasets::Dataset;
use comity_federation::{
    Approval, Circumstances, ClientId, ModelDigest, OrderRefusal, ParticipantEffect,
    ParticipantEvent, Plan, PlanDigest, RunId, Task, Time, Update,
};
use comity_journal::{BlobError, failpoint};
use comity_privacy::{Charge, PrivacyError, PrivacyPlan, Randomness, ReservationKey};
use comity_proto::convert::{digest, run_id};
use comity_proto::limits::{BACKOFF, PLAN_BYTES_MAX};
use comity_proto::transport::fraction;
use comity_proto::v1::{self, assignment::What};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::Streaming;
use tracing::{debug, info, warn};

use self::papers::Outstanding;
use crate::config;
use crate::consent::{Ordered, Scales};
use crate::decisions::{self, Decision};
use crate::egress::Egress;
use crate::enrolment::Renewal;
use crate::link::{CallError, Credentials, Link, check_url};
use crate::outside::Outside;
use crate::store::{Part, Store};
use crate::trainer::{Job, Records, Trained};
use crate::transfers::{Ended, Outgoing, Wire};

/// How often the node looks for the steward's decisions and at the hours.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// A node at work.
pub struct Node {
    id: ClientId,
    settings: config::Node,
    outside: Outside,
    credentials: Credentials,
    store: Store,
    egress: Egress,
    parts: BTreeMap<RunId, Part>,
    records: Records,
    /// Rounds that wait for the trainer.
    queue: VecDeque<Task>,
    /// What each run's plan asks of this client's privacy: calibrated once.
    privacy: BTreeMap<RunId, Option<PrivacyPlan>>,
    /// Size of each round's model, as the coordinator announced it.
    model_bytes: BTreeMap<RunId, u64>,
    training: Option<(Task, oneshot::Receiver<Trained>)>,
    /// Held by the one download that writes its staged part.
    download_turn: Arc<Mutex<()>>,
    /// Records that were checked and are to be countersigned.
    outstanding: Outstanding,
    /// Countersignatures on their way.
    countersigning: JoinSet<()>,
    /// Runs that ended since the node started.
    n_ended: u32,
}

/// A task that ends with whoever started it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why [`Node::serve`] came back.
enum Left {
    /// The connection was lost.
    Lost(String),
    /// The node was asked to stop, or has seen enough runs end.
    Done,
}

impl Node {
    /// The node whose configuration lies at `path`, with everything that its journal says.
    ///
    /// # Errors
    /// If configuration, certificate or journal cannot be read or are refused, if there is no such device,
    /// and if another process holds the node's state.
    pub fn open(path: &Path, outside: Outside) -> anyhow::Result<Self> {
        let settings = config::Node::read(path)?;
        check_url(&settings.config.coordinator)?;
        let credentials = Credentials::read(&settings.certificates(), &outside.clock)?;
        let id = credentials.client_id()?;
        settings.config.device.open()?;
        let updates_bytes_max = settings.config.storage.updates_bytes_max.as_u64();
        let (mut store, parts) =
            Store::open(&settings.state(), settings.limit(), updates_bytes_max)?;
        let records = Records::new(settings.config.data.source.clone(), settings.base.clone());
        for (run, part) in &parts {
            info!(%run, standing = part.participant.standing(), "run resumed");
        }
        let bytes_max = settings.policy.bytes_out_round_max;
        let egress = store.egress(outside.clock.clone(), Some(bytes_max));
        Ok(Self {
            id,
            settings,
            outside,
            credentials,
            store,
            egress,
            parts,
            records,
            queue: VecDeque::new(),
            privacy: BTreeMap::new(),
            model_bytes: BTreeMap::new(),
            training: None,
            download_turn: Arc::default(),
            outstanding: Outstanding::default(),
            countersigning: JoinSet::new(),
            n_ended: 0,
        })
    }

    /// Follows the coordinator until `stop` fires or, if it is not zero, `exit_after_runs` runs
    /// have ended.
    ///
    /// # Errors
    /// If the node cannot keep its books; a lost connection is not an error.
    pub async fn run(
        mut self,
        exit_after_runs: u32,
        mut stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let _renewal = AbortOnDrop(tokio::spawn(self.renewal().run()));
        let (mut pause, mut n_pauses) = (BACKOFF.0, 0u64);
        let mut said = String::new();
        loop {
            let url = self.settings.config.coordinator.clone();
            let compress = self.settings.config.connection.compress;
            let network = Arc::clone(&self.outside.network);
            self.reload();
            let egress = self.egress.clone();
            let opened = tokio::select! {
                opened = Link::open(&*network, &url, &self.credentials, compress, egress) => opened,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            let why = match opened {
                Err(error) => self.renewal().explain(&error).await,
                Ok(link) => {
                    info!(coordinator = %url, federation = link.hello.federation, you = link.hello.you, "connected");
                    (pause, said) = (BACKOFF.0, String::new());
                    match self.serve(link, exit_after_runs, &mut stop).await? {
                        Left::Done => return Ok(()),
                        Left::Lost(why) => why,
                    }
                }
            };
            if let Some(failure) = self.egress.failure() {
                anyhow::bail!("what leaves cannot be recorded, so nothing does: {failure}");
            }
            // A coordinator that is away for a month is one line in the log, not a hundred thousand.
            if why == said {
                debug!(why, "still not connected");
            } else {
                warn!(why, "not connected; trying again until it works");
                said = why;
            }
            n_pauses += 1;
            self.pause(jittered(pause, &self.id, n_pauses), &mut stop).await?;
            if *stop.borrow() {
                return Ok(());
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// How the node's certificate is renewed.
    fn renewal(&self) -> Renewal {
        Renewal {
            certificates: self.settings.certificates(),
            url: self.settings.enrolment(),
            clock: self.outside.clock.clone(),
            network: Arc::clone(&self.outside.network),
        }
    }

    /// Takes the certificate that lies there now: it may have been renewed, and the next connection shows it.
    fn reload(&mut self) {
        match Credentials::read(&self.settings.certificates(), &self.outside.clock) {
            Ok(read) if read.summary.identity == self.credentials.summary.identity => {
                self.credentials = read;
            }
            Ok(read) => warn!(
                found = %read.summary.identity,
                "the certificate is another member's; the one before is used on"
            ),
            Err(error) => {
                warn!(error = format!("{error:#}"), "the certificate before is used on");
            }
        }
    }

    /// Waits before dialling again.  What is trained meanwhile is made durable at once, and ends the pause: a
    /// round must not close on an update because its sender slept.
    async fn pause(
        &mut self,
        pause: Duration,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + pause;
        loop {
            // Without a connection nothing can be lost.
            let _ = self.look(&mut Wire::default()).await?;
            tokio::select! {
                () = tokio::time::sleep_until(end) => return Ok(()),
                () = tokio::time::sleep(LOOK_PAUSE) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                trained = finished(&mut self.training) => {
                    let _ = self.trained(&mut Wire::default(), trained).await?;
                    return Ok(());
                }
            }
        }
    }

    /// Serves one connection.
    async fn serve(
        &mut self,
        link: Link,
        exit_after_runs: u32,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<Left> {
        let mut following = link.clone();
        let mut wire = Wire::new(link);
        for run in self.parts.keys().cloned().collect::<Vec<_>>() {
            if let Some(effect) = self.parts[&run].participant.pending()
                && let Err(lost) = self.perform(&mut wire, &run, effect).await?
            {
                return Ok(Left::Lost(lost));
            }
        }
        self.countersign_again();
        let held = |part: &Part| part.book.latest().map(|(round, _)| round);
        let open = self.parts.iter().map(|(run, part)| (run.clone(), held(part))).collect();
        let mut assignments = match following.follow(open).await {
            Ok(assignments) => assignments,
            Err(CallError::Lost(why)) => return Ok(Left::Lost(why)),
            Err(CallError::Refused(status)) => return Ok(Left::Lost(status.message().to_owned())),
        };
        loop {
            if exit_after_runs > 0 && self.n_ended >= exit_after_runs {
                self.countersign_rest(&wire).await;
                return Ok(Left::Done);
            }
            if let Err(lost) = self.look(&mut wire).await? {
                return Ok(Left::Lost(lost));
            }
            self.move_on(&mut wire);
            let outcome = tokio::select! {
                next = next(&mut assignments) => match next {
                    Ok(assignment) => self.heard(&mut wire, assignment).await?,
                    Err(lost) => Err(lost),
                },
                trained = finished(&mut self.training) => self.trained(&mut wire, trained).await?,
                ended = wire.ended() => self.transferred(&mut wire, ended).await?,
                () = tokio::time::sleep(LOOK_PAUSE) => Ok(()),
                () = self.outstanding.due() => {
                    self.countersign(&wire);
                    Ok(())
                }
                _ = stop.wait_for(|stop| *stop) => return Ok(Left::Done),
            };
            if let Err(lost) = outcome {
                return Ok(Left::Lost(lost));
            }
        }
    }

    /// Gives up transfers that nobody wants any more, and starts those that wait.
    fn move_on(&mut self, wire: &mut Wire) {
        let Some(link) = wire.link.clone() else { return };
        let parts = &self.parts;
        // Nothing more leaves for a run whose coordinator is not believed.
        let part = |run: &RunId| {
            let part = parts.get(run).filter(|part| part.book.breach().is_none());
            part.map(|part| &part.participant)
        };
        wire.keep(
            |update| part(&update.run).is_some_and(|p| p.has_to_send(&update.contribution)),
            |task| part(&task.run).is_some_and(|p| p.has_to_train(task)),
        );
        self.queue.retain(|task| part(&task.run).is_some_and(|p| p.has_to_train(task)));
        if let Some(update) = wire.next_upload() {
            let (mut link, blobs) = (link.clone(), self.store.blobs());
            let Outgoing { run, contribution } = update.clone();
            wire.start_upload(
                update,
                async move { link.submit(&run, &contribution, &blobs).await },
            );
        }
        let hours = self.settings.policy.hours;
        if hours.is_none_or(|hours| hours.are_open(self.outside.clock.now()))
            && self.training.is_none()
            && !wire.downloads()
            && let Some(task) = self.queue.pop_front()
        {
            let bytes = self.model_bytes.get(&task.run).copied().unwrap_or_default();
            let (mut link, blobs, turn) =
                (link, self.store.blobs(), Arc::clone(&self.download_turn));
            let (run, model) = (task.run.clone(), task.model);
            wire.start_download(task, async move {
                link.fetch_model(&run, model, bytes, &blobs, &turn).await
            });
        }
    }

    /// Takes the answer to an update that is just coming, then the assignment, which may be the news of it.
    async fn heard(
        &mut self,
        wire: &mut Wire,
        assignment: v1::Assignment,
    ) -> anyhow::Result<Result<(), String>> {
        if let Some(ended) = wire.answered(&assignment.run_id).await
            && let Err(lost) = self.transferred(wire, ended).await?
        {
            return Ok(Err(lost));
        }
        self.assigned(wire, assignment).await
    }

    /// Takes one assignment; the inner error is a lost connection.
    async fn assigned(
        &mut self,
        wire: &mut Wire,
        assignment: v1::Assignment,
    ) -> anyhow::Result<Result<(), String>> {
        let Ok(run) = run_id(&assignment.run_id) else {
            return Ok(Err(format!("the coordinator names a run {:?}", assignment.run_id)));
        };
        match assignment.what {
            Some(What::Offer(offer)) => self.offered(wire, run, &offer).await,
            Some(What::Train(train)) => {
                let task = (|| {
                    Ok::<_, comity_proto::WireError>(Task {
                        run: run.clone(),
                        round: train.round,
                        plan: PlanDigest(digest("plan_digest", &train.plan_digest)?),
                        model: ModelDigest(digest("model_digest", &train.model_digest)?),
                        closes: Time(train.closes_ms),
                    })
                })();
                match task {
                    Ok(task) => {
                        if let Some(reason) = self.refusal(&task) {
                            warn!(%run, round = task.round, reason, "round not served");
                            let Some(link) = &mut wire.link else { return Ok(Ok(())) };
                            return Ok(settle(
                                &run,
                                link.withdraw(&run, task.round, &reason).await,
                            ));
                        }
                        self.model_bytes.insert(run.clone(), train.model_bytes);
                        self.step(wire, &run, ParticipantEvent::Assigned { task }).await
                    }
                    Err(error) => Ok(Err(error.to_string())),
                }
            }
            Some(What::Ended(ended)) => {
                if let Err(lost) = self.check_finish(wire, &run, &ended).await? {
                    return Ok(Err(lost));
                }
                let status = match ended.reason.as_str() {
                    "" => ended.status,
                    reason => format!("{}: {reason}", ended.status),
                };
                info!(%run, status, "run ended");
                self.queue.retain(|task| task.run != run);
                let outcome = self.step(wire, &run, ParticipantEvent::RunEnded { status }).await?;
                self.privacy.remove(&run);
                self.egress.run_ended(&run);
                if self.parts.remove(&run).is_some() {
                    self.n_ended += 1;
                }
                Ok(outcome)
            }
            Some(What::Record(record)) => self.recorded(wire, run, record).await,
            None => {
                warn!(%run, "assignment of an unknown kind; update this software");
                Ok(Ok(()))
            }
        }
    }

    /// Looks for what needs no message: the steward's decisions, and rounds that close before the hours begin.
    async fn look(&mut self, wire: &mut Wire) -> anyhow::Result<Result<(), String>> {
        for (file, decision) in decisions::waiting(&self.settings.state()) {
            let outcome = match decision {
                Ok((handed, by)) => {
                    let decision = Decision {
                        plan: handed.plan,
                        approved: handed.approved,
                        reason: handed.reason,
                        by,
                        at: handed.at,
                    };
                    self.decided(wire, &handed.run, decision).await?
                }
                Err(reason) => {
                    warn!(file = %file.display(), reason, "this is no decision, and is removed");
                    Ok(())
                }
            };
            std::fs::remove_file(&file)
                .with_context(|| format!("{} cannot be removed", file.display()))?;
            if outcome.is_err() {
                return Ok(outcome);
            }
        }
        let Some(hours) = self.settings.policy.hours else { return Ok(Ok(())) };
        let begin = hours.next_open(self.outside.clock.now());
        for task in
            self.queue.iter().filter(|task| task.closes < begin).cloned().collect::<Vec<_>>()
        {
            let reason = format!("the round closes before this institution's hours begin: {hours}");
            self.queue.retain(|waiting| !waiting.is_same_work(&task));
            let outcome = self.failed(wire, &task, reason).await?;
            if outcome.is_err() {
                return Ok(outcome);
            }
        }
        Ok(Ok(()))
    }

    /// Takes the steward's decision about `run`; one about another plan than the run's does not count.
    async fn decided(
        &mut self,
        wire: &mut Wire,
        run: &RunId,
        decision: Decision,
    ) -> anyhow::Result<Result<(), String>> {
        let Some(part) = self.parts.get_mut(run) else {
            warn!(%run, "the steward decided about a run that is not open here");
            return Ok(Ok(()));
        };
        if part.participant.plan() != decision.plan {
            warn!(
                %run, shown = %decision.plan, now = %part.participant.plan(),
                "the run has changed since it was shown: the decision does not count"
            );
            return Ok(Ok(()));
        }
        self.store.decided(run, &decision)?;
        info!(%run, decision = decision.words(), "the steward decided");
        let is_open = part.participant.is_unanswered() || part.participant.declined().is_some();
        let approved = decision.approved;
        part.decision = Some(decision);
        if approved && !is_open {
            return Ok(Ok(()));
        }
        self.answer(wire, run).await
    }

    /// Checks an offered run against its order before any data are read and before it is recorded, and
    /// answers it.
    async fn offered(
        &mut self,
        wire: &mut Wire,
        run: RunId,
        offer: &v1::Offer,
    ) -> anyhow::Result<Result<(), String>> {
        let plan = match plan_of(&offer.plan_json, &offer.plan_digest) {
            Ok(plan) => plan,
            Err(reason) => return self.refuse(wire, &run, &reason).await,
        };
        let ordered = match self.check_order(&run, &plan, offer)? {
            Ok(ordered) => ordered,
            Err(refusal) => return self.refuse(wire, &run, &refusal.to_string()).await,
        };
        if !self.parts.contains_key(&run) {
            let by = &ordered.order.order.by;
            info!(%run, plan = %plan.digest(), by, purpose = plan.purpose, "plan offered");
            let part = self.store.offered(&run, &plan, ordered, self.outside.clock.now())?;
            self.parts.insert(run.clone(), part);
        }
        let before = self.parts[&run].participant.clone();
        // What was agreed to is not looked at anew because the coordinator asks again.
        if before.is_unanswered() || before.declined().is_some() {
            let outcome = self.answer(wire, &run).await?;
            if outcome.is_err() || self.parts[&run].participant != before {
                return Ok(outcome);
            }
        }
        match before.pending() {
            // An answer that was given before, and that the coordinator does not know, is repeated.
            Some(effect) => self.perform(wire, &run, effect).await,
            None => Ok(Ok(())),
        }
    }

    /// Whether `run` is what an operator ordered, once; the outer error is of this node's own files.
    fn check_order(
        &self,
        run: &RunId,
        plan: &Plan,
        offer: &v1::Offer,
    ) -> anyhow::Result<Result<Ordered, OrderRefusal>> {
        if self.store.orders().knows_another(run, plan.digest()) {
            return Ok(Err(OrderRefusal::Replayed { run: run.clone(), what: "plan" }));
        }
        if let Some(Part { order: Some(order), consents, .. }) = self.parts.get(run)
            && order.order.to_json()[..] == offer.order_json[..]
        {
            // The very order that was checked and recorded; what a clock says now changes nothing about it.
            return Ok(Ok(Ordered { order: order.clone(), consents: consents.clone() }));
        }
        let root = self.settings.certificates().join("root.pem");
        let root_pem = std::fs::read_to_string(&root)
            .with_context(|| format!("{} cannot be read", root.display()))?;
        let scales = Scales {
            policy: &self.settings.policy,
            federation: &self.credentials.summary.identity.federation,
            root_pem: &root_pem,
            now: self.outside.clock.now(),
        };
        let ordered = match scales.check(run, plan, offer) {
            Ok(ordered) => ordered,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let ended = self.store.has_ended(run)?;
        let had = self.store.orders().check(&ordered.order.order, &plan.name, ended);
        Ok(had.map(|()| ordered))
    }

    /// Says to `run` what policy, steward and data say, if anything is to be said yet.
    async fn answer(&mut self, wire: &mut Wire, run: &RunId) -> anyhow::Result<Result<(), String>> {
        let part = &self.parts[run];
        let (plan, decision) = (Arc::clone(&part.plan), part.decision.clone());
        let answer = match decision {
            Some(decision) if !decision.approved => {
                Err(format!("the institution's steward refused: {}", decision.reason))
            }
            decision => match self.review(run, &plan) {
                Err(reason) => Err(reason),
                Ok(()) if decision.is_none() && self.settings.policy.approval == Approval::Ask => {
                    info!(%run, "the run waits for the steward: `comity-client run show {run}`");
                    return Ok(Ok(()));
                }
                Ok(()) => self.check_data(&plan),
            },
        };
        let event = match answer {
            Ok(()) => ParticipantEvent::Accepted,
            Err(reason) => {
                warn!(%run, reason, "plan declined");
                ParticipantEvent::Declined { reason }
            }
        };
        self.step(wire, run, event).await
    }

    /// Whether the policy allows the plan, or the reason that travels to the operator.
    fn review(&mut self, run: &RunId, plan: &Plan) -> Result<(), String> {
        let review = |circumstances| {
            let said = self.settings.policy.review(plan, &self.id, circumstances);
            said.map_err(|refusal| refusal.to_string())
        };
        review(Circumstances::default())?;
        let privacy = self.privacy_plan(run, plan)?;
        self.check_year(run, plan, privacy.as_ref())
    }

    /// Whether the year has room for the run.
    fn check_year(
        &self,
        run: &RunId,
        plan: &Plan,
        privacy: Option<&PrivacyPlan>,
    ) -> Result<(), String> {
        let now = self.outside.clock.now();
        let epsilon_year = privacy
            .map(|privacy| self.store.epsilon_year(run, privacy.schedule().mechanisms(), now));
        let said = self.settings.policy.review(plan, &self.id, Circumstances { epsilon_year });
        said.map_err(|refusal| refusal.to_string())
    }

    /// Whether the data are as the plan describes them, or the reason that travels to the operator.
    fn check_data(&mut self, plan: &Plan) -> Result<(), String> {
        let dataset = self.records.load(&plan.data).map_err(|error| {
            // Paths and row numbers stay here.
            warn!(error = format!("{error:#}"), "the data do not fit the plan");
            "this institution's data could not be read as the plan describes them; its steward \
             sees the reason in the node's log"
                .to_owned()
        })?;
        check_units(plan, &dataset).map_err(|error| error.to_string())
    }

    /// What `plan`, which is the one of `run`, asks of this client's privacy; `None` without DP.
    fn privacy_plan(&mut self, run: &RunId, plan: &Plan) -> Result<Option<PrivacyPlan>, String> {
        if !self.privacy.contains_key(run) {
            let named = plan.client(&self.id).ok_or("the plan does not name this client")?;
            let privacy = plan.privacy_plan(named).map_err(|e| e.to_string())?;
            self.privacy.insert(run.clone(), privacy);
        }
        Ok(self.privacy[run].clone())
    }

    /// Declines a plan that cannot even be recorded.
    async fn refuse(
        &mut self,
        wire: &mut Wire,
        run: &RunId,
        reason: &str,
    ) -> anyhow::Result<Result<(), String>> {
        warn!(%run, reason, "plan declined");
        let Some(link) = &mut wire.link else { return Ok(Ok(())) };
        Ok(settle(run, link.decline(run, reason).await))
    }

    /// Steps one machine, makes the step durable, and performs its effects.
    async fn step(
        &mut self,
        wire: &mut Wire,
        run: &RunId,
        event: ParticipantEvent,
    ) -> anyhow::Result<Result<(), String>> {
        let Some(part) = self.parts.get_mut(run) else {
            debug!(%run, "news of a run that this node does not know");
            return Ok(Ok(()));
        };
        let effects = match part.step(event.clone()) {
            Ok(effects) => effects,
            Err(refusal) => {
                warn!(%run, %refusal, "the coordinator's message was refused");
                return Ok(Ok(()));
            }
        };
        for effect in effects {
            if effect == ParticipantEffect::Record {
                failpoint::reach("client::before_record");
                // A release was made durable with the ledger's commit, in one record.
                if !matches!(event, ParticipantEvent::Trained { .. }) {
                    self.store.stepped(run, &self.parts[run], event.clone())?;
                }
                failpoint::reach("client::after_record");
                if matches!(
                    event,
                    // The next round can be assigned before the coordinator's answer to an update is here.
                    ParticipantEvent::Assigned { .. }
                        | ParticipantEvent::Settled { .. }
                        | ParticipantEvent::Failed { .. }
                        | ParticipantEvent::RunEnded { .. }
                ) {
                    self.store.sweep(&self.parts);
                }
                continue;
            }
            if let Err(lost) = self.perform(wire, run, effect).await? {
                return Ok(Err(lost));
            }
        }
        Ok(Ok(()))
    }

    async fn perform(
        &mut self,
        wire: &mut Wire,
        run: &RunId,
        effect: ParticipantEffect,
    ) -> anyhow::Result<Result<(), String>> {
        use ParticipantEffect as Do;
        Ok(match (self.instead(run, effect), &mut wire.link) {
            (Do::Train(task), _) => {
                let mut waiting =
                    self.training.iter().map(|(current, _)| current).chain(&self.queue);
                if !waiting.any(|known| known.is_same_work(&task)) && !wire.downloads_for(&task) {
                    self.queue.push_back(task);
                }
                Ok(())
            }
            // Without a connection nothing is said: `pending` and the next assignment repeat it.
            (Do::Record, _) | (_, None) => Ok(()),
            (Do::CheckIn { plan }, Some(link)) => {
                info!(%run, "checking in");
                settle(run, link.check_in(run, plan).await)
            }
            (Do::Decline { reason }, Some(link)) => settle(run, link.decline(run, &reason).await),
            (Do::Withdraw { round, reason }, Some(link)) => {
                settle(run, link.withdraw(run, round, &reason).await)
            }
            (Do::Submit { contribution }, Some(link)) => {
                let round = contribution.round;
                match self.store.blobs().reader_of_whole(&contribution.update.0) {
                    Ok(_) => {}
                    Err(error @ BlobError::Io { .. }) => return Ok(Err(error.to_string())),
                    Err(error) => {
                        // It cannot be made again: its privacy was spent. Put back from a backup, it is
                        // sent when the round is assigned again.
                        warn!(%run, round, %error, "the stored update is lost");
                        let reason = "the update was lost on this institution's disk";
                        if let Err(lost) = settle(run, link.withdraw(run, round, reason).await) {
                            return Ok(Err(lost));
                        }
                        let event = ParticipantEvent::Settled { round };
                        return Box::pin(self.step(wire, run, event)).await;
                    }
                }
                failpoint::reach("client::before_submit");
                wire.submit(Outgoing { run: run.clone(), contribution });
                Ok(())
            }
        })
    }

    /// Takes the end of a transfer.
    async fn transferred(
        &mut self,
        wire: &mut Wire,
        ended: Ended,
    ) -> anyhow::Result<Result<(), String>> {
        match ended {
            Ended::Upload(Outgoing { run, contribution }, outcome) => {
                let (round, bytes) = (contribution.round, contribution.delta_bytes());
                match outcome {
                    Err(CallError::Lost(why)) => return Ok(Err(why)),
                    Err(CallError::Refused(status)) => {
                        warn!(%run, round, reason = status.message(), "update not accepted");
                    }
                    Ok(receipt) => {
                        info!(%run, round, bytes, "update accepted");
                        match receipt {
                            Some(receipt) => {
                                if let Err(lost) = self.receipted(wire, &run, receipt).await? {
                                    return Ok(Err(lost));
                                }
                            }
                            None => warn!(%run, round, "the coordinator gave no receipt"),
                        }
                    }
                }
                failpoint::reach("client::after_submit");
                self.step(wire, &run, ParticipantEvent::Settled { round }).await
            }
            Ended::Download(_, Err(CallError::Lost(why))) => Ok(Err(why)),
            Ended::Download(task, Err(CallError::Refused(status))) => {
                warn!(run = %task.run, reason = status.message(), "no model to train from");
                let reason = "the round's model could not be fetched".to_owned();
                self.failed(wire, &task, reason).await
            }
            Ended::Download(task, Ok(())) => self.train(wire, task).await,
        }
    }

    /// Trains `task`, whose model is there.
    async fn train(&mut self, wire: &mut Wire, task: Task) -> anyhow::Result<Result<(), String>> {
        let Some(part) = self.parts.get(&task.run) else { return Ok(Ok(())) };
        let plan = Arc::clone(&part.plan);
        failpoint::reach("client::after_fetch");
        match self.prepare(&task, plan)? {
            Ok(job) => {
                info!(run = %task.run, round = task.round, "training");
                self.training = Some((task, self.outside.trainer.start(job)));
                Ok(Ok(()))
            }
            Err(reason) => self.failed(wire, &task, reason).await,
        }
    }

    /// Debits the ledger for `task`, or says why the round cannot be trained; nothing is trained that is
    /// not paid for. The outer error is of the disk.
    fn prepare(&mut self, task: &Task, plan: Arc<Plan>) -> anyhow::Result<Result<Job, String>> {
        let (charge, privacy, dataset) = match self.charge(task, &plan) {
            Ok(charged) => charged,
            Err(reason) => return Ok(Err(reason)),
        };
        let key = ReservationKey { run: task.run.to_string(), round: task.round };
        failpoint::reach("client::before_debit");
        let reservation = match self.store.reserve(key, charge, self.outside.clock.now()) {
            Ok(reservation) => reservation,
            Err(error) => match error.downcast_ref::<PrivacyError>() {
                Some(PrivacyError::LedgerStore { .. }) | None => {
                    return Err(error.context("the ledger cannot be debited"));
                }
                Some(refusal) => return Ok(Err(refusal.to_string())),
            },
        };
        failpoint::reach("client::after_debit");
        Ok(Ok(Job {
            task: task.clone(),
            plan,
            client: self.id.clone(),
            privacy,
            reservation,
            dataset,
            device: self.settings.config.device,
            state: self.store.state(&task.run),
            blobs: self.store.blobs(),
        }))
    }

    /// What `task` costs, under which privacy plan and keys, and the data that it is about.
    #[expect(clippy::type_complexity, reason = "named nowhere else")]
    fn charge(
        &mut self,
        task: &Task,
        plan: &Plan,
    ) -> Result<(Charge, Option<(PrivacyPlan, Randomness)>, Arc<Dataset>), String> {
        let privacy = self.privacy_plan(&task.run, plan)?;
        if !self.store.ledger().knows(task.run.as_str()) {
            // Another run may have been opened since this one was reviewed.
            self.check_year(&task.run, plan, privacy.as_ref())?;
        }
        let dataset = self.records.load(&plan.data).map_err(|error| {
            warn!(error = format!("{error:#}"), "the data cannot be read");
            "this institution's data cannot be read".to_owned()
        })?;
        let (charge, privacy) = match privacy {
            Some(privacy) => {
                let randomness = Randomness::from_os().map_err(|e| e.to_string())?;
                let charge = match task.round {
                    0 => privacy.analytics_charge(&randomness).map_err(|e| e.to_string())?,
                    _ => privacy.charge(&randomness),
                };
                (charge, Some((privacy, randomness)))
            }
            None => (Charge::exempt(task.plan.0), None),
        };
        Ok((charge, privacy, dataset))
    }

    /// Releases what was trained: commit first, then it may leave.
    async fn trained(
        &mut self,
        wire: &mut Wire,
        (task, trained): (Task, Trained),
    ) -> anyhow::Result<Result<(), String>> {
        let Some(part) = self.parts.get(&task.run) else {
            debug!(run = %task.run, round = task.round, "trained for a run that has ended");
            return Ok(Ok(()));
        };
        let LocalResult { release, state } = match trained {
            Ok(trained) => trained,
            Err(error) => {
                warn!(run = %task.run, round = task.round, error = format!("{error:#}"), "training failed");
                let reason = "training failed; the steward sees the reason in the node's log";
                return self.failed(wire, &task, reason.to_owned()).await;
            }
        };
        let run = task.run.clone();
        let update = Update::new(&task, &part.plan, &self.id, release);
        // A round that closed meanwhile is not released: its record would be one that the journal cannot
        // replay. What was debited stays debited.
        let event = ParticipantEvent::Trained { contribution: update.contribution().clone() };
        if let Err(refusal) = part.participant.clone().step(event) {
            info!(%run, round = task.round, %refusal, "trained too late; nothing is released");
            return Ok(Ok(()));
        }
        failpoint::reach("client::before_release");
        let event = self
            .store
            .released(&update, state.as_ref())
            .context("the release cannot be recorded")?;
        failpoint::reach("client::after_release");
        info!(%run, round = task.round, "update released");
        // What was spent so far takes numerical work, which only this line's reader should pay for.
        debug!(%run, epsilon_spent = self.store.ledger().spent().epsilon, "ledger after the release");
        self.step(wire, &run, event).await
    }

    async fn failed(
        &mut self,
        wire: &mut Wire,
        task: &Task,
        reason: String,
    ) -> anyhow::Result<Result<(), String>> {
        warn!(run = %task.run, round = task.round, reason, "round not trained");
        let run = task.run.clone();
        self.step(wire, &run, ParticipantEvent::Failed { round: task.round, reason }).await
    }
}

/// The plan in `json`, which is to have `digest`; or why it is declined.
fn plan_of(json: &[u8], digest: &[u8]) -> Result<Plan, String> {
    if json.len() > PLAN_BYTES_MAX {
        return Err("the plan is too long".to_owned());
    }
    let plan = Plan::from_json(json).map_err(|error| error.to_string())?;
    if plan.digest().0[..] != *digest {
        return Err("the plan is not the one of its digest; launch it again".to_owned());
    }
    Ok(plan)
}

/// A refusal ends the matter with a line in the log; only a lost connection is an error.
fn settle(run: &RunId, result: Result<(), CallError>) -> Result<(), String> {
    match result {
        Ok(()) => Ok(()),
        Err(CallError::Refused(status)) => {
            warn!(%run, reason = status.message(), "the coordinator refused");
            Ok(())
        }
        Err(CallError::Lost(why)) => Err(why),
    }
}

/// `pause` cut by up to a half, otherwise at each client and each time: after a coordinator's restart its
/// clients come back one after the other.
fn jittered(pause: Duration, id: &ClientId, n_pauses: u64) -> Duration {
    pause.mul_f64(1.0 - fraction(&(id, n_pauses)) / 2.0)
}

/// The next assignment, or why there is none.
async fn next(assignments: &mut Streaming<v1::Assignment>) -> Result<v1::Assignment, String> {
    match assignments.message().await {
        Ok(Some(assignment)) => Ok(assignment),
        Ok(None) => Err("the coordinator ended the stream".to_owned()),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// The end of the training under way; never, if there is none.
async fn finished(training: &mut Option<(Task, oneshot::Receiver<Trained>)>) -> (Task, Trained) {
    let Some((_, receiver)) = training else { return std::future::pending().await };
    let trained = receiver.await;
    let (task, _) = training.take().expect("it was there above");
    (task, trained.unwrap_or_else(|_| Err(anyhow::anyhow!("the training thread panicked"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_whose_privacy_is_not_that_of_its_digest_is_declined() {
        let plan = Plan::from_toml(include_str!("../../examples/fashion/plan.toml")).unwrap();
        let digest = plan.digest().0;
        assert_eq!(plan_of(&plan.to_json(), &digest).unwrap(), plan);
        let text = String::from_utf8(plan.to_json()).unwrap();
        for (from, to) in [
            ("\"epsilon\":8.0", "\"epsilon\":80.0"),
            ("\"delta\":0.00001", "\"delta\":0.0001"),
            ("\"clip_norm_l2\":0.1", "\"clip_norm_l2\":1.0"),
            ("\"rounds\":10", "\"rounds\":20"),
        ] {
            let to_delta = text.replacen(from, to, 1);
            let forged = if to_delta == text { text.replacen("1e-5", "1e-4", 1) } else { to_delta };
            assert_ne!(forged, text, "{from}");
            let reason = plan_of(forged.as_bytes(), &digest).unwrap_err();
            assert!(reason.contains("not the one of its digest"), "{from}: {reason}");
        }
        assert!(plan_of(b"{}", &digest).is_err());
        assert!(plan_of(&vec![b' '; PLAN_BYTES_MAX + 1], &digest).unwrap_err().contains("long"));
    }
}
