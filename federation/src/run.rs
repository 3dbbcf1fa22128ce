//! The coordinator's machine: one run, from gathering its clients to its last model.
//!
//! ```text
//!              all named clients answered, or deadline with quorum
//!  Gathering ───────────────────────────────────────────────────► Training(1)
//!      │                                                            │  ▲
//!      │ deadline without quorum                  all answered, or  │  │ Aggregated,
//!      │                                       deadline with quorum │  │ rounds remain
//!      ▼                                                            ▼  │
//!   Aborted ◄──── abort, or deadline without quorum ────────── Aggregating ──► Finished
//! ```
//!
//! Where the plan asks for statistics, round 0 comes before round 1: it has the same phases, its
//! contributions are statistics instead of a model's change, and its model is the first one with what
//! the statistics say of the features.
//!
//! Where the plan protects whole institutions, a round begins with **Drawing**: the driver draws its
//! cohort in secret and answers with [`Event::Drawn`]; then any number of contributions is a quorum,
//! none included, because their number must not tell who was drawn.
//!
//! * **Gathering** publishes the plan; a client checks in or declines.
//! * **Training** has a cohort, each member of which contributes, withdraws, or is late.
//! * **Aggregating** waits for the driver to fold the contributions into the next model.
//!
//! Rules that hold everywhere: a [`Rejection`] leaves the state unchanged (all checks come
//! first); [`Effect::Record`] comes first and must be durable before any later effect of that
//! step is performed; recovery is [`Run::replay`], the same [`Run::step`] folded over the
//! recorded events; at most one accepted contribution per client and round.
//!
//! Deliberately not here: what a client trains, how a delta is stored, who may order what.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::plan::millionths;
use crate::{
    ClientId, ClientReport, ClientStanding, Contribution, ContributionReport, Country, ModelDigest,
    Plan, PlanDigest, Rejection, RoundReport, RunId, RunReport, RunStatus, Time, UpdateDigest,
    weights,
};

/// Longest reason that a client or an operator may give, in bytes; longer ones are cut.
const REASON_BYTES_MAX: usize = 500;

/// What happened outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A client agrees to the plan.
    CheckedIn {
        /// Who.
        client: ClientId,
        /// To which plan.
        plan: PlanDigest,
    },
    /// A client declines the plan.
    Declined {
        /// Who.
        client: ClientId,
        /// Why, for the operator.
        reason: String,
    },
    /// The driver drew the cohort of a round whose plan
    /// [draws in secret](Plan::draws_in_secret).
    Drawn {
        /// Which round.
        round: u32,
        /// Who is in it.
        cohort: Vec<ClientId>,
    },
    /// A client's whole update lies in the blob store.
    Submitted {
        /// Who.
        client: ClientId,
        /// What it claims.
        contribution: Contribution,
    },
    /// A client cannot train this round.
    Withdrew {
        /// Who.
        client: ClientId,
        /// Which round.
        round: u32,
        /// Why, for the operator.
        reason: String,
    },
    /// The driver folded the round's contributions into this model.
    Aggregated {
        /// Which round.
        round: u32,
        /// The new model.
        model: ModelDigest,
        /// In round 0, the sums of the clients' noisy statistics, `[n_values]`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        statistics: Option<Vec<i64>>,
    },
    /// The operator orders something.
    Ordered {
        /// What.
        command: Command,
    },
    /// Time passed.
    Tick,
}

/// What an operator can order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// End the run now.
    Abort {
        /// Why.
        reason: String,
    },
}

/// What the driver must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make the event of this step durable before anything that follows.
    Record,
    /// Draw the round's cohort among `present`, each with the plan's probability, and answer with
    /// [`Event::Drawn`].
    Draw {
        /// Which round.
        round: u32,
        /// Who can be drawn.
        present: Vec<ClientId>,
    },
    /// Ask the cohort to train from `model`.
    Invite {
        /// Which round.
        round: u32,
        /// Whom.
        cohort: Vec<ClientId>,
        /// From which model.
        model: ModelDigest,
        /// When the round closes.
        closes: Time,
    },
    /// Fold these updates, each with its weight, into `base`, and answer with
    /// [`Event::Aggregated`].
    Aggregate {
        /// Which round.
        round: u32,
        /// From which model.
        base: ModelDigest,
        /// Blobs and integer weights.
        updates: Vec<(UpdateDigest, u64)>,
    },
    /// Tell everybody how the run ended.
    Finish(Outcome),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All rounds are done; the last model.
    Finished(ModelDigest),
    /// Ended early, and why.
    Aborted(String),
}

impl Outcome {
    fn rejection(&self) -> Rejection {
        Rejection::Ended(match self {
            Self::Finished(_) => "finished".to_owned(),
            Self::Aborted(reason) => format!("aborted: {reason}"),
        })
    }
}

/// What [`Run::admit`] says of an update that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the first of its client in this round.
    Wanted,
    /// It has been accepted before; a repetition after a lost reply is a success.
    AlreadyHere,
}

/// How far a member of the cohort is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    Invited,
    Contributed(ContributionReport),
    Withdrew(String),
}

/// Each phase holds only what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Gathering { closes: Time },
    Drawing,
    Training { cohort: BTreeMap<ClientId, Progress>, closes: Time },
    Aggregating,
    Ended { outcome: Outcome, at: Time },
}

/// One run.  See the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    id: RunId,
    plan: Plan,
    plan_digest: PlanDigest,
    n_parameters: u64,
    /// The sums of the statistics that were released before training.
    statistics: Option<Vec<i64>>,
    started: Time,
    phase: Phase,
    /// The model that the open round starts from, or the last one.
    model: ModelDigest,
    present: BTreeSet<ClientId>,
    declined: BTreeMap<ClientId, String>,
    /// Begins with the plan's first round; the last one may be open.
    history: Vec<RoundReport>,
}

impl Run {
    /// A run that gathers its clients from `started` on.
    ///
    /// # Panics
    /// If `plan` was not validated: [`Plan`] can be read only through its validation.
    #[must_use]
    pub fn new(id: RunId, plan: Plan, start: ModelDigest, started: Time) -> Self {
        let n_parameters = plan.manifest().expect("the plan was validated").n_trainable() as u64;
        let closes = started.after(plan.cohort.gathering_deadline);
        Self {
            id,
            plan_digest: plan.digest(),
            plan,
            n_parameters,
            statistics: None,
            started,
            phase: Phase::Gathering { closes },
            model: start,
            present: BTreeSet::new(),
            declined: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// The run after the recorded events, oldest first: the same [`step`](Self::step), folded.
    ///
    /// # Errors
    /// The first rejection, which a genuine journal never holds.
    pub fn replay(
        mut self,
        events: impl IntoIterator<Item = (Time, Event)>,
    ) -> Result<Self, Rejection> {
        for (now, event) in events {
            self.step(event, now)?;
        }
        Ok(self)
    }

    /// When the driver owes the run a [`Event::Tick`]; `None` if it waits for no time.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Gathering { closes } | Phase::Training { closes, .. } => Some(*closes),
            Phase::Drawing | Phase::Aggregating | Phase::Ended { .. } => None,
        }
    }

    /// Takes `event`, which happened at `now`, and says what to do.
    ///
    /// No effects mean that nothing changed: the event was a repetition, or a tick before its
    /// time, and need not be recorded.
    ///
    /// # Errors
    /// [`Rejection`]; the state is then unchanged.
    pub fn step(&mut self, event: Event, now: Time) -> Result<Vec<Effect>, Rejection> {
        if let Phase::Ended { outcome, .. } = &self.phase {
            return match event {
                Event::Tick => Ok(Vec::new()),
                Event::Submitted { client, contribution } => {
                    self.admit(&client, &contribution).map(|_| Vec::new())
                }
                _ => Err(outcome.rejection()),
            };
        }
        match event {
            Event::CheckedIn { client, plan } => self.check_in(client, plan, now),
            Event::Declined { client, reason } => self.decline(client, reason, now),
            Event::Drawn { round, cohort } => self.drawn(round, cohort, now),
            Event::Submitted { client, contribution } => self.submit(client, contribution, now),
            Event::Withdrew { client, round, reason } => self.withdraw(client, round, reason, now),
            Event::Aggregated { round, model, statistics } => {
                self.aggregated(round, model, statistics, now)
            }
            Event::Ordered { command: Command::Abort { reason } } => {
                // What has arrived stays on record, though no model will count it.
                if let Some(open) = self.rounds_from(self.history.len().saturating_sub(1)).pop() {
                    self.history.pop();
                    self.history.push(open);
                }
                Ok(self.end(Outcome::Aborted(cut(reason)), now))
            }
            Event::Tick => Ok(self.tick(now)),
        }
    }

    fn check_in(
        &mut self,
        client: ClientId,
        plan: PlanDigest,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        self.named(&client)?;
        self.same_plan(plan)?;
        if self.present.contains(&client) {
            return Ok(Vec::new());
        }
        self.declined.remove(&client);
        self.present.insert(client);
        Ok(self.gathered(now, false))
    }

    fn decline(
        &mut self,
        client: ClientId,
        reason: String,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        self.named(&client)?;
        let reason = cut(reason);
        if self.declined.get(&client) == Some(&reason) {
            return Ok(Vec::new());
        }
        self.present.remove(&client);
        self.declined.insert(client.clone(), reason.clone());
        if let Phase::Training { cohort, .. } = &mut self.phase
            && let Some(progress @ Progress::Invited) = cohort.get_mut(&client)
        {
            *progress = Progress::Withdrew(reason);
            return Ok(self.answered(now, false));
        }
        Ok(self.gathered(now, false))
    }

    fn submit(
        &mut self,
        client: ClientId,
        contribution: Contribution,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        if self.admit(&client, &contribution)? == Admission::AlreadyHere {
            return Ok(Vec::new());
        }
        let named = self.plan.client(&client).expect("`admit` checked that the plan names it");
        // Statistics are sums, not means: everybody's count once.
        let weight = if contribution.round == 0 { 1 } else { self.plan.weight(named) };
        if let Phase::Training { cohort, .. } = &mut self.phase {
            let report = ContributionReport {
                weight,
                bytes: contribution.delta_bytes(),
                update: contribution.update,
                n_correct: contribution.n_correct,
                loss_sum: contribution.loss_sum,
                at: now,
                client: client.clone(),
            };
            cohort.insert(client, Progress::Contributed(report));
        }
        Ok(self.answered(now, false))
    }

    /// Whether the update that `client` offers would be accepted: asked before its bytes are
    /// taken, and again when they have arrived.
    ///
    /// # Errors
    /// [`Rejection`] if it would not be.
    pub fn admit(
        &self,
        client: &ClientId,
        contribution: &Contribution,
    ) -> Result<Admission, Rejection> {
        self.named(client)?;
        self.same_plan(contribution.plan)?;
        // The same update again, after a lost reply, is a success, even when its round is over.
        let earlier = contribution
            .round
            .checked_sub(self.plan.first_round())
            .and_then(|i| self.history.get(i as usize));
        if earlier.is_some_and(|round| {
            let mut known = round.contributions.iter();
            known.any(|c| c.client == *client && c.update == contribution.update)
        }) {
            return Ok(Admission::AlreadyHere);
        }
        let open = self.last_round();
        let cohort = match &self.phase {
            Phase::Training { cohort, .. } if contribution.round == open => cohort,
            Phase::Ended { outcome, .. } => return Err(outcome.rejection()),
            _ => return Err(Rejection::RoundNotOpen { got: contribution.round, open }),
        };
        let progress = cohort
            .get(client)
            .ok_or_else(|| Rejection::NotInvited { client: client.clone(), round: open })?;
        if contribution.base != self.model {
            return Err(Rejection::OtherBase { expected: self.model, got: contribution.base });
        }
        let expected = match self.plan.analytics_request() {
            Some(request) if open == 0 => request.n_values(),
            _ => self.n_parameters,
        };
        if contribution.n_parameters != expected {
            return Err(Rejection::WrongSize { expected, got: contribution.n_parameters });
        }
        match progress {
            Progress::Contributed(first) if first.update == contribution.update => {
                Ok(Admission::AlreadyHere)
            }
            Progress::Contributed(_) => Err(Rejection::AlreadyContributed(client.clone())),
            Progress::Invited | Progress::Withdrew(_) => Ok(Admission::Wanted),
        }
    }

    fn withdraw(
        &mut self,
        client: ClientId,
        round: u32,
        reason: String,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        self.named(&client)?;
        let open = self.last_round();
        let Phase::Training { cohort, .. } = &mut self.phase else {
            return Err(Rejection::RoundNotOpen { got: round, open });
        };
        if round != open {
            return Err(Rejection::RoundNotOpen { got: round, open });
        }
        let reason = cut(reason);
        match cohort.get_mut(&client) {
            None => Err(Rejection::NotInvited { client, round }),
            Some(Progress::Contributed(_)) => Err(Rejection::AlreadyContributed(client)),
            Some(Progress::Withdrew(_)) => Ok(Vec::new()),
            Some(progress) => {
                *progress = Progress::Withdrew(reason);
                Ok(self.answered(now, false))
            }
        }
    }

    fn aggregated(
        &mut self,
        round: u32,
        model: ModelDigest,
        statistics: Option<Vec<i64>>,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        if self.phase != Phase::Aggregating || round != self.last_round() {
            return Err(Rejection::OutOfPlace("no such round waits for its model"));
        }
        let fits = match &statistics {
            Some(sums) => round == 0 && self.plan.estimates(sums).is_ok(),
            None => round != 0,
        };
        if !fits {
            return Err(Rejection::OutOfPlace("round 0, and no other, ends in statistics"));
        }
        self.statistics = statistics.or(self.statistics.take());
        self.model = model;
        let record = self.history.last_mut().expect("a round is being aggregated");
        record.model = Some(model);
        record.closed = Some(now);
        if round == self.plan.rounds {
            return Ok(self.end(Outcome::Finished(model), now));
        }
        let mut effects = vec![Effect::Record];
        effects.extend(self.open_round(now));
        Ok(effects)
    }

    fn tick(&mut self, now: Time) -> Vec<Effect> {
        match &self.phase {
            Phase::Gathering { closes } if now >= *closes => self.gathered(now, true),
            Phase::Training { closes, .. } if now >= *closes => self.answered(now, true),
            _ => Vec::new(),
        }
    }

    /// Opens the first round when everybody has answered or, at the deadline, with a quorum.
    fn gathered(&mut self, now: Time, at_deadline: bool) -> Vec<Effect> {
        let mut effects = vec![Effect::Record];
        if !matches!(self.phase, Phase::Gathering { .. }) {
            return effects;
        }
        let everybody = self.present.len() + self.declined.len() == self.plan.cohort.clients.len();
        if !everybody && !at_deadline {
            return effects;
        }
        match self.lacking(self.present.iter()) {
            None => effects.extend(self.open_round(now)),
            Some(lacking) => {
                effects =
                    self.end(Outcome::Aborted(format!("too few clients agreed: {lacking}")), now);
            }
        }
        effects
    }

    /// Closes the round when all of the cohort have answered or, at the deadline, with a quorum.
    fn answered(&mut self, now: Time, at_deadline: bool) -> Vec<Effect> {
        let mut effects = vec![Effect::Record];
        let Phase::Training { cohort, .. } = &self.phase else {
            return effects;
        };
        if !at_deadline && cohort.values().any(|p| *p == Progress::Invited) {
            return effects;
        }
        let mut contributions = Vec::new();
        let mut missing = Vec::new();
        for (client, progress) in cohort {
            match progress {
                Progress::Contributed(contribution) => contributions.push(contribution.clone()),
                Progress::Withdrew(reason) => missing.push((client.clone(), reason.clone())),
                Progress::Invited => {
                    missing
                        .push((client.clone(), "late: nothing arrived by the deadline".to_owned()));
                }
            }
        }
        let lacking = if self.plan.draws_in_secret() {
            None
        } else {
            self.lacking(contributions.iter().map(|c| &c.client))
        };
        let record = self.history.last_mut().expect("a round is open");
        record.contributions.clone_from(&contributions);
        record.missing = missing;
        let round = record.round;
        if let Some(lacking) = lacking {
            let why = format!("round {round} closed without a quorum: {lacking}");
            return self.end(Outcome::Aborted(why), now);
        }
        self.phase = Phase::Aggregating;
        // Only now: a share of the weight cannot be capped among too few countries.
        let updates = self.weighted(&contributions);
        effects.push(Effect::Aggregate { round, base: self.model, updates });
        effects
    }

    /// The contributions with the weights with which they count.
    fn weighted(&self, contributions: &[ContributionReport]) -> Vec<(UpdateDigest, u64)> {
        let updates = contributions.iter().map(|c| c.update);
        let weights: Vec<(Country, u64)> =
            contributions.iter().map(|c| (c.client.country(), c.weight)).collect();
        match self.plan.aggregation.country_weight_max {
            // Statistics are sums: everybody's count once.
            Some(share) if self.last_round() > 0 => {
                updates.zip(weights::capped(&weights, millionths(share))).collect()
            }
            _ => updates.zip(weights.into_iter().map(|(_, weight)| weight)).collect(),
        }
    }

    /// Opens the next round with everybody who is present.
    fn open_round(&mut self, now: Time) -> Vec<Effect> {
        if let Some(lacking) = self.lacking(self.present.iter()) {
            return self
                .end(Outcome::Aborted(format!("too few clients are left: {lacking}")), now)
                .split_off(1);
        }
        let round = self.plan.first_round() + self.history.len() as u32;
        let present: Vec<ClientId> = self.present.iter().cloned().collect();
        self.history.push(RoundReport {
            round,
            opened: now,
            closed: None,
            base: self.model,
            model: None,
            cohort: Vec::new(),
            contributions: Vec::new(),
            missing: Vec::new(),
        });
        if self.plan.draws_in_secret() {
            self.phase = Phase::Drawing;
            return vec![Effect::Draw { round, present }];
        }
        vec![self.invite(present, now)]
    }

    /// The cohort of a round is known: the round trains, or has nobody to wait for.
    fn drawn(
        &mut self,
        round: u32,
        cohort: Vec<ClientId>,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        let everybody: BTreeSet<&ClientId> = cohort.iter().collect();
        let fits = self.phase == Phase::Drawing
            && round == self.last_round()
            && everybody.len() == cohort.len()
            && everybody.iter().all(|client| self.present.contains(*client));
        if !fits {
            return Err(Rejection::OutOfPlace("no such cohort is waited for"));
        }
        if cohort.is_empty() {
            self.phase = Phase::Training { cohort: BTreeMap::new(), closes: now };
            return Ok(self.answered(now, false));
        }
        Ok(vec![Effect::Record, self.invite(cohort, now)])
    }

    /// Opens the last round's training to `cohort`.
    fn invite(&mut self, cohort: Vec<ClientId>, now: Time) -> Effect {
        let closes = now.after(self.plan.cohort.round_deadline);
        let record = self.history.last_mut().expect("a round is open");
        let round = record.round;
        record.cohort.clone_from(&cohort);
        self.phase = Phase::Training {
            cohort: cohort.iter().map(|c| (c.clone(), Progress::Invited)).collect(),
            closes,
        };
        Effect::Invite { round, cohort, model: self.model, closes }
    }

    /// The open round, or the last one; 0 before the first.
    fn last_round(&self) -> u32 {
        match self.history.len() as u32 {
            0 => 0,
            n_rounds => self.plan.first_round() + n_rounds - 1,
        }
    }

    fn end(&mut self, outcome: Outcome, now: Time) -> Vec<Effect> {
        self.phase = Phase::Ended { outcome: outcome.clone(), at: now };
        vec![Effect::Record, Effect::Finish(outcome)]
    }

    /// What `clients` lack for a quorum, in words; `None` if they are enough.
    fn lacking<'a>(&self, clients: impl Iterator<Item = &'a ClientId>) -> Option<String> {
        let clients: BTreeSet<&ClientId> = clients.collect();
        let countries: BTreeSet<Country> = clients.iter().map(|c| c.country()).collect();
        let (min_clients, min_countries) =
            (self.plan.cohort.min_clients as usize, self.plan.cohort.min_countries as usize);
        if clients.len() >= min_clients && countries.len() >= min_countries {
            return None;
        }
        let absent: Vec<String> = self
            .plan
            .cohort
            .clients
            .iter()
            .filter(|named| !clients.contains(&named.id))
            .map(|named| match self.declined.get(&named.id) {
                Some(reason) => format!("{} (declined: {reason})", named.id),
                None => named.id.to_string(),
            })
            .collect();
        Some(format!(
            "{} of at least {min_clients} clients, {} of at least {min_countries} countries; without {}",
            clients.len(),
            countries.len(),
            absent.join(", ")
        ))
    }

    fn named(&self, client: &ClientId) -> Result<(), Rejection> {
        self.plan.client(client).map(|_| ()).ok_or_else(|| Rejection::NotInPlan(client.clone()))
    }

    fn same_plan(&self, got: PlanDigest) -> Result<(), Rejection> {
        let expected = self.plan_digest;
        if got == expected { Ok(()) } else { Err(Rejection::OtherPlan { expected, got }) }
    }

    /// Which run this is.
    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan's digest.
    #[must_use]
    pub fn plan_digest(&self) -> PlanDigest {
        self.plan_digest
    }

    /// The latest model.
    #[must_use]
    pub fn model(&self) -> ModelDigest {
        self.model
    }

    /// How the run ended, if it did.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Ended { outcome, .. } => Some(outcome),
            _ => None,
        }
    }

    /// Whether `client` has agreed to the plan or declined it.
    #[must_use]
    pub fn has_answered(&self, client: &ClientId) -> bool {
        self.present.contains(client) || self.declined.contains_key(client)
    }

    /// The effect that the driver must perform again after a restart: the last one whose answer
    /// has not come.
    #[must_use]
    pub fn pending(&self) -> Option<Effect> {
        let record = self.history.last();
        match (&self.phase, record) {
            (Phase::Training { cohort, closes }, Some(record)) => Some(Effect::Invite {
                round: record.round,
                cohort: cohort
                    .iter()
                    .filter(|(_, progress)| **progress == Progress::Invited)
                    .map(|(client, _)| client.clone())
                    .collect(),
                model: self.model,
                closes: *closes,
            }),
            (Phase::Drawing, Some(record)) => Some(Effect::Draw {
                round: record.round,
                present: self.present.iter().cloned().collect(),
            }),
            (Phase::Aggregating, Some(record)) => Some(Effect::Aggregate {
                round: record.round,
                base: self.model,
                updates: self.weighted(&record.contributions),
            }),
            _ => None,
        }
    }

    /// What the run looks like from outside.
    #[must_use]
    pub fn report(&self) -> RunReport {
        RunReport { history: self.rounds_from(0), ..self.summary() }
    }

    /// How many rounds were opened so far.
    #[must_use]
    pub fn n_rounds(&self) -> usize {
        self.history.len()
    }

    /// The rounds after the first `n_skipped`, oldest first; the open one with what has arrived.
    #[must_use]
    pub fn rounds_from(&self, n_skipped: usize) -> Vec<RoundReport> {
        let mut rounds = self.history.get(n_skipped..).unwrap_or_default().to_vec();
        if let (Phase::Training { cohort, .. }, Some(open)) = (&self.phase, rounds.last_mut()) {
            for (client, progress) in cohort {
                match progress {
                    Progress::Contributed(c) => open.contributions.push(c.clone()),
                    Progress::Withdrew(why) => open.missing.push((client.clone(), why.clone())),
                    Progress::Invited => {}
                }
            }
        }
        rounds
    }

    /// [`report`](Self::report) without its rounds: its cost does not grow with them.
    #[must_use]
    pub fn summary(&self) -> RunReport {
        let (status, reason, ended) = match &self.phase {
            Phase::Gathering { .. } => (RunStatus::Gathering, None, None),
            Phase::Drawing | Phase::Training { .. } => (RunStatus::Training, None, None),
            Phase::Aggregating => (RunStatus::Aggregating, None, None),
            Phase::Ended { outcome: Outcome::Finished(_), at } => {
                (RunStatus::Finished, None, Some(*at))
            }
            Phase::Ended { outcome: Outcome::Aborted(reason), at } => {
                (RunStatus::Aborted, Some(reason.clone()), Some(*at))
            }
        };
        RunReport {
            run: self.id.clone(),
            name: self.plan.name.clone(),
            plan: self.plan_digest,
            status,
            reason,
            round: self.last_round(),
            rounds: self.plan.rounds,
            started: self.started,
            ended,
            model: self.model,
            clients: self
                .plan
                .cohort
                .clients
                .iter()
                .map(|named| ClientReport {
                    client: named.id.clone(),
                    standing: if self.present.contains(&named.id) {
                        ClientStanding::Present
                    } else if self.declined.contains_key(&named.id) {
                        ClientStanding::Declined
                    } else {
                        ClientStanding::Absent
                    },
                    note: self.declined.get(&named.id).cloned(),
                })
                .collect(),
            history: Vec::new(),
            statistics: self
                .statistics
                .as_ref()
                .map(|sums| self.plan.estimates(sums).expect("they were checked when they came")),
        }
    }
}

/// At most [`REASON_BYTES_MAX`] bytes of `reason`, control characters replaced.
fn cut(reason: String) -> String {
    let mut text = String::new();
    for c in reason.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if text.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod any_events;
#[cfg(test)]
mod tests;
