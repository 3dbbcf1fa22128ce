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
//! * **Gathering** publishes the plan; a client checks in or declines. One that agreed may still decline later:
//!   it is then asked for nothing more, and what it contributed stays.
//! * **Training** has a cohort, each member of which contributes, withdraws, or is late.
//! * **Aggregating** waits for the driver to fold the contributions into the next model.
//!
//! Where the plan takes late updates (`cohort.late`, or FedBuff), a client that was asked in an earlier
//! round stays asked: its update counts in the round that is open when it comes, or in the next one if it
//! comes while a round is being folded.
//!
//! Rules that hold everywhere: a [`Rejection`] leaves the state unchanged (all checks come
//! first); [`Effect::Record`] comes first and must be durable before any later effect of that
//! step is performed; recovery is [`Run::replay`], the same [`Run::step`] folded over the
//! recorded events; at most one accepted contribution per client and round.
//!
//! The rules of one round are in `round`, who may contribute in `admission`, and what is seen from
//! outside in `view`.
//!
//! Deliberately not here: what a client trains, how a delta is stored, who may order what.

mod admission;
mod answers;
mod round;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::answers::{Answer, Answers};
use crate::{
    ClientId, Contribution, ModelDigest, NamedClient, Plan, PlanDigest, Rejection, RoundReport,
    RunId, Time, UpdateDigest,
};

/// Longest reason that a client or an operator may give, in bytes; longer ones are cut.
const REASON_BYTES_MAX: usize = 500;

/// Why a client is missing in a round whose update may count in the next one: it has to be on record there again.
pub(crate) const LATE_STILL_TRAINING: &str =
    "late: still training; its update counts in a later round if it comes in time";

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
    /// The driver looked at a client's update and does not accept it.
    Refused {
        /// Whose.
        client: ClientId,
        /// For which round it was trained.
        round: u32,
        /// Why, for the operator and the client.
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
    /// Go on without a client: what it contributed to the open round does not count.
    Exclude {
        /// Whom.
        client: ClientId,
        /// Why.
        reason: String,
    },
    /// Take a client back that was excluded; it is asked again in the next round.
    Readmit {
        /// Whom.
        client: ClientId,
        /// Why.
        #[serde(default)]
        reason: String,
    },
}

/// What the driver must do next.
#[derive(Clone, Debug, PartialEq)]
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
        /// The round's factor on the server's learning rate: 1, but with FedNova.
        gain: f64,
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

/// What a client was last asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    round: u32,
    base: ModelDigest,
}

/// Each phase holds only what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Gathering { closes: Time },
    Drawing,
    Training { answers: Answers, closes: Time },
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
    /// Where each client stands in the plan: a plan of many is not searched for each message.
    positions: BTreeMap<ClientId, usize>,
    /// The sums of the statistics that were released before training.
    statistics: Option<Vec<i64>>,
    started: Time,
    phase: Phase,
    /// The model that the open round starts from, or the last one.
    model: ModelDigest,
    present: BTreeSet<ClientId>,
    declined: BTreeMap<ClientId, String>,
    excluded: BTreeMap<ClientId, String>,
    /// Who was asked for an update that did not come yet, or comes too late to be wanted.
    asked: BTreeMap<ClientId, Asked>,
    /// What came while a round was being folded, for the next one.
    carried: Answers,
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
        let n_parameters = plan.model_manifest().expect("the plan was validated").n_shared() as u64;
        let closes = started.after(plan.cohort.gathering_deadline);
        let positions =
            plan.cohort.clients.iter().enumerate().map(|(i, named)| (named.id.clone(), i));
        Self {
            id,
            positions: positions.collect(),
            plan_digest: plan.digest(),
            plan,
            n_parameters,
            statistics: None,
            started,
            phase: Phase::Gathering { closes },
            model: start,
            present: BTreeSet::new(),
            declined: BTreeMap::new(),
            excluded: BTreeMap::new(),
            asked: BTreeMap::new(),
            carried: Answers::default(),
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
            Event::Withdrew { client, round, reason } => {
                self.nothing_comes(client, round, reason, false, now)
            }
            Event::Refused { client, round, reason } => {
                self.nothing_comes(client, round, reason, true, now)
            }
            Event::Aggregated { round, model, statistics } => {
                self.aggregated(round, model, statistics, now)
            }
            Event::Ordered { command } => self.ordered(command, now),
            Event::Tick => Ok(self.tick(now)),
        }
    }

    fn ordered(&mut self, command: Command, now: Time) -> Result<Vec<Effect>, Rejection> {
        match command {
            Command::Abort { reason } => {
                // What has arrived stays on record, though no model will count it.
                if let Some(open) = self.rounds_from(self.history.len().saturating_sub(1)).pop() {
                    self.history.pop();
                    self.history.push(open);
                }
                Ok(self.end(Outcome::Aborted(cut(reason)), now))
            }
            Command::Exclude { client, reason } => self.exclude(client, cut(reason), now),
            Command::Readmit { client, .. } => {
                self.named(&client)?;
                let was = self.excluded.remove(&client);
                Ok(was.map(|_| Effect::Record).into_iter().collect())
            }
        }
    }

    fn exclude(
        &mut self,
        client: ClientId,
        reason: String,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        self.named(&client)?;
        if self.excluded.contains_key(&client) {
            return Ok(Vec::new());
        }
        if self.phase == Phase::Drawing {
            return Err(Rejection::OutOfPlace("a cohort is being drawn; try again"));
        }
        let missing = Answer::Missing { reason: format!("excluded: {reason}"), is_final: true };
        self.excluded.insert(client.clone(), reason);
        if self.carried.contains_key(&client) {
            self.carried.insert(client.clone(), missing);
        } else if let Phase::Training { answers, .. } = &mut self.phase
            && (answers.contains_key(&client) || self.asked.contains_key(&client))
        {
            answers.insert(client.clone(), missing);
        }
        self.asked.remove(&client);
        Ok(match &self.phase {
            Phase::Training { .. } => self.answered(now, false),
            _ => self.gathered(now, false),
        })
    }

    fn check_in(
        &mut self,
        client: ClientId,
        plan: PlanDigest,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        self.named(&client)?;
        self.same_plan(plan)?;
        self.not_excluded(&client)?;
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
        let is_asked = self.is_asked(&client);
        // Nothing more is asked of it, not even what it was asked before.
        self.asked.remove(&client);
        if let Phase::Training { answers, .. } = &mut self.phase
            && is_asked
        {
            answers.insert(client, Answer::Missing { reason, is_final: false });
            return Ok(self.answered(now, false));
        }
        Ok(self.gathered(now, false))
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
        // Fewer answers than names are not all, whoever they are from: that is most of them.
        let n_answers = self.present.len() + self.declined.len() + self.excluded.len();
        let everybody = || self.positions.keys().all(|client| self.has_answered(client));
        if !at_deadline && (n_answers < self.positions.len() || !everybody()) {
            return effects;
        }
        match self.lacking(self.available()) {
            None => effects.extend(self.open_round(now)),
            Some(lacking) => {
                effects =
                    self.end(Outcome::Aborted(format!("too few clients agreed: {lacking}")), now);
            }
        }
        effects
    }

    fn end(&mut self, outcome: Outcome, now: Time) -> Vec<Effect> {
        // What was accepted for a round that does not open any more stays on record too.
        let carried = std::mem::take(&mut self.carried);
        if !carried.is_empty() {
            self.open_record(now);
            self.record_answers(carried);
        }
        self.phase = Phase::Ended { outcome: outcome.clone(), at: now };
        vec![Effect::Record, Effect::Finish(outcome)]
    }

    /// Who agreed to the plan and was not excluded.
    fn available(&self) -> impl Iterator<Item = &ClientId> {
        self.present.iter().filter(|client| !self.excluded.contains_key(*client))
    }

    fn named(&self, client: &ClientId) -> Result<&NamedClient, Rejection> {
        let position = self.positions.get(client);
        let named = position.map(|position| &self.plan.cohort.clients[*position]);
        named.ok_or_else(|| Rejection::NotInPlan(client.clone()))
    }

    fn not_excluded(&self, client: &ClientId) -> Result<(), Rejection> {
        match self.excluded.get(client) {
            None => Ok(()),
            Some(reason) => {
                Err(Rejection::Excluded { client: client.clone(), reason: reason.clone() })
            }
        }
    }

    fn same_plan(&self, got: PlanDigest) -> Result<(), Rejection> {
        let expected = self.plan_digest;
        if got == expected { Ok(()) } else { Err(Rejection::OtherPlan { expected, got }) }
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
mod governed;
#[cfg(test)]
mod tests;
