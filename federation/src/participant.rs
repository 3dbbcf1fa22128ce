//! The client's machine: one institution's part in one run.
//!
//! ```text
//!  Offered ──Accepted──► Waiting ──Assigned──► Training ──Trained──► Submitting
//!     │ Declined          ▲ │ ▲                   │ Failed              │
//!     ▼          Accepted │ │ ├───────────────────┘ (withdraws)         │
//!  Declined ──────────────┘ │ └──────────────── Settled ────────────────┘
//!     ▲                     │ Declined, also while it trains or submits
//!     └─────────────────────┘
//!  any ──RunEnded──► Ended
//! ```
//!
//! Who agreed can still decline: the steward refuses the run. What is being trained is then not released,
//! and what was released and not accepted yet is not sent.
//!
//! A task that is assigned again after a lost connection or a restart is not trained again once
//! its update exists: the same update is submitted again.  A task older than the last one served
//! is refused, because only a rolled-back coordinator asks for it.

use serde::{Deserialize, Serialize};

use crate::{Contribution, ModelDigest, PlanDigest, Rejection, RunId, Time};

/// What the coordinator asks of a client in one round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// For which run.
    pub run: RunId,
    /// Counted from 1; 0 asks for statistics.
    pub round: u32,
    /// Under which plan.
    pub plan: PlanDigest,
    /// From which model.
    pub model: ModelDigest,
    /// When the round closes, by the coordinator's clock.
    pub closes: Time,
}

impl Task {
    /// Whether `other` asks for the same update: a round that is late is asked for again under a later
    /// round's deadline.
    #[must_use]
    pub fn is_same_work(&self, other: &Self) -> bool {
        (&self.run, self.round, self.model) == (&other.run, other.round, other.model)
    }
}

/// What happened at a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ParticipantEvent {
    /// The institution's policy allows the plan, and its steward approves where that is asked.
    Accepted,
    /// The institution's policy does not allow the plan, or its steward refuses it.
    Declined {
        /// Why.
        reason: String,
    },
    /// The coordinator assigns a round.
    Assigned {
        /// Which.
        task: Task,
    },
    /// The round's update has been released and stored.
    Trained {
        /// Its header.
        contribution: Contribution,
    },
    /// The round cannot be trained.
    Failed {
        /// Which round.
        round: u32,
        /// Why, for the operator; holds nothing of the data.
        reason: String,
    },
    /// The coordinator has the update, or no longer wants it.
    Settled {
        /// Which round.
        round: u32,
    },
    /// The run is over.
    RunEnded {
        /// How.
        status: String,
    },
}

/// What the client's driver must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParticipantEffect {
    /// Make the event of this step durable before anything that follows.
    Record,
    /// Tell the coordinator that the plan is agreed to.
    CheckIn {
        /// To which plan.
        plan: PlanDigest,
    },
    /// Tell the coordinator that the plan is declined.
    Decline {
        /// Why.
        reason: String,
    },
    /// Fetch the model, debit the ledger, train, release.
    Train(Task),
    /// Send the stored update.
    Submit {
        /// Its header.
        contribution: Contribution,
    },
    /// Tell the coordinator that nothing will come.
    Withdraw {
        /// Which round.
        round: u32,
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Offered,
    Declined { reason: String },
    Waiting,
    Training { task: Task },
    Submitting { contribution: Contribution },
    Ended { status: String },
}

/// One institution's part in one run.  See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    run: RunId,
    plan: PlanDigest,
    state: State,
    /// The last update, kept to answer a repeated assignment.
    last: Option<Contribution>,
    /// The last round that failed here, with its reason.
    failed: Option<(u32, String)>,
}

impl Participant {
    /// A client to which `run` with `plan` has been offered.
    #[must_use]
    pub fn new(run: RunId, plan: PlanDigest) -> Self {
        Self { run, plan, state: State::Offered, last: None, failed: None }
    }

    /// The participant after the recorded events, oldest first.
    ///
    /// # Errors
    /// The first rejection, which a genuine journal never holds.
    pub fn replay(
        mut self,
        events: impl IntoIterator<Item = ParticipantEvent>,
    ) -> Result<Self, Rejection> {
        for event in events {
            self.step(event)?;
        }
        Ok(self)
    }

    /// Takes `event` and says what to do; no effects mean that nothing changed.
    ///
    /// # Errors
    /// [`Rejection`]; the state is then unchanged.
    pub fn step(&mut self, event: ParticipantEvent) -> Result<Vec<ParticipantEffect>, Rejection> {
        use ParticipantEffect as Do;
        if let State::Ended { status } = &self.state {
            return match event {
                ParticipantEvent::RunEnded { .. } => Ok(Vec::new()),
                _ => Err(Rejection::Ended(status.clone())),
            };
        }
        match event {
            ParticipantEvent::Accepted => match self.state {
                State::Offered | State::Declined { .. } => {
                    self.state = State::Waiting;
                    Ok(vec![Do::Record, Do::CheckIn { plan: self.plan }])
                }
                _ => Ok(Vec::new()),
            },
            ParticipantEvent::Declined { reason } => match &self.state {
                State::Declined { reason: known } if *known == reason => Ok(Vec::new()),
                _ => {
                    self.state = State::Declined { reason: reason.clone() };
                    Ok(vec![Do::Record, Do::Decline { reason }])
                }
            },
            ParticipantEvent::Assigned { task } => self.assigned(task),
            ParticipantEvent::Trained { contribution } => match &self.state {
                State::Training { task } if task.round == contribution.round => {
                    self.last = Some(contribution.clone());
                    self.state = State::Submitting { contribution: contribution.clone() };
                    Ok(vec![Do::Record, Do::Submit { contribution }])
                }
                _ => Err(Rejection::OutOfPlace("no such round is being trained")),
            },
            ParticipantEvent::Failed { round, reason } => match &self.state {
                State::Training { task } if task.round == round => {
                    self.failed = Some((round, reason.clone()));
                    self.state = State::Waiting;
                    Ok(vec![Do::Record, Do::Withdraw { round, reason }])
                }
                _ => Err(Rejection::OutOfPlace("no such round is being trained")),
            },
            ParticipantEvent::Settled { round } => match &self.state {
                State::Submitting { contribution } if contribution.round == round => {
                    self.state = State::Waiting;
                    Ok(vec![Do::Record])
                }
                _ => Ok(Vec::new()),
            },
            ParticipantEvent::RunEnded { status } => {
                self.state = State::Ended { status };
                Ok(vec![Do::Record])
            }
        }
    }

    fn assigned(&mut self, task: Task) -> Result<Vec<ParticipantEffect>, Rejection> {
        use ParticipantEffect as Do;
        if task.plan != self.plan || task.run != self.run {
            return Err(Rejection::OtherPlan { expected: self.plan, got: task.plan });
        }
        if matches!(self.state, State::Offered | State::Declined { .. }) {
            return Err(Rejection::OutOfPlace("the plan has not been agreed to"));
        }
        if let Some(last) = &self.last {
            if task.round < last.round {
                return Err(Rejection::OlderRound { got: task.round, done: last.round });
            }
            if task.round == last.round {
                if task.model != last.base {
                    return Err(Rejection::OtherBase { expected: last.base, got: task.model });
                }
                return Ok(vec![Do::Submit { contribution: last.clone() }]);
            }
        }
        if let Some((round, reason)) = &self.failed
            && *round == task.round
        {
            return Ok(vec![Do::Withdraw { round: *round, reason: reason.clone() }]);
        }
        if let State::Training { task: current } = &self.state {
            if current.is_same_work(&task) {
                return Ok(vec![Do::Train(task)]);
            }
            if task.round < current.round {
                return Err(Rejection::OlderRound { got: task.round, done: current.round });
            }
        }
        self.state = State::Training { task: task.clone() };
        Ok(vec![Do::Record, Do::Train(task)])
    }

    /// What the driver must do again after a restart or a new connection.
    #[must_use]
    pub fn pending(&self) -> Option<ParticipantEffect> {
        match &self.state {
            State::Waiting | State::Training { .. } => {
                Some(ParticipantEffect::CheckIn { plan: self.plan })
            }
            State::Declined { reason } => {
                Some(ParticipantEffect::Decline { reason: reason.clone() })
            }
            State::Submitting { contribution } => {
                Some(ParticipantEffect::Submit { contribution: contribution.clone() })
            }
            State::Offered | State::Ended { .. } => None,
        }
    }

    /// Whether the update with this header is the last one, and no later round is being trained: only then
    /// is it of use to the coordinator.
    #[must_use]
    pub fn has_to_send(&self, contribution: &Contribution) -> bool {
        let done = matches!(self.state, State::Waiting | State::Submitting { .. });
        done && self.last.as_ref() == Some(contribution)
    }

    /// Whether `task` is the one that is being trained.
    #[must_use]
    pub fn has_to_train(&self, task: &Task) -> bool {
        matches!(&self.state, State::Training { task: current } if current.is_same_work(task))
    }

    /// The round that is being trained.
    #[must_use]
    pub fn task(&self) -> Option<&Task> {
        match &self.state {
            State::Training { task } => Some(task),
            _ => None,
        }
    }

    /// The last update, which the coordinator may ask for again while the run is open.
    #[must_use]
    pub fn last(&self) -> Option<&Contribution> {
        self.last.as_ref()
    }

    /// The plan that was offered.
    #[must_use]
    pub fn plan(&self) -> PlanDigest {
        self.plan
    }

    /// Why the plan was declined, if it is.
    #[must_use]
    pub fn declined(&self) -> Option<&str> {
        match &self.state {
            State::Declined { reason } => Some(reason),
            _ => None,
        }
    }

    /// Whether the plan has not been answered yet.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.state == State::Offered
    }

    /// How the run ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<&str> {
        match &self.state {
            State::Ended { status } => Some(status),
            _ => None,
        }
    }

    /// The state as one word, for lists.
    #[must_use]
    pub fn standing(&self) -> &'static str {
        match &self.state {
            State::Offered => "offered",
            State::Declined { .. } => "declined",
            State::Waiting => "waiting",
            State::Training { .. } => "training",
            State::Submitting { .. } => "submitting",
            State::Ended { .. } => "ended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UpdateDigest;
    use ParticipantEffect as Do;
    use ParticipantEvent as On;

    const PLAN: PlanDigest = PlanDigest([1; 32]);

    fn task(round: u32) -> Task {
        Task {
            run: "sample-1".parse().unwrap(),
            round,
            plan: PLAN,
            model: ModelDigest([round as u8; 32]),
            closes: Time(1000),
        }
    }

    fn contribution(round: u32) -> Contribution {
        Contribution {
            round,
            plan: PLAN,
            base: ModelDigest([round as u8; 32]),
            update: UpdateDigest([5; 32]),
            n_parameters: 3,
            encoding: crate::UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: None,
        }
    }

    fn waiting() -> Participant {
        let mut participant = Participant::new("sample-1".parse().unwrap(), PLAN);
        participant.step(On::Accepted).unwrap();
        participant
    }

    fn submitted(round: u32) -> Participant {
        let mut participant = waiting();
        participant.step(On::Assigned { task: task(round) }).unwrap();
        participant.step(On::Trained { contribution: contribution(round) }).unwrap();
        participant
    }

    #[test]
    fn a_round_is_trained_submitted_and_settled() {
        let mut participant = waiting();
        let effects = participant.step(On::Assigned { task: task(1) }).unwrap();
        assert_eq!(effects, [Do::Record, Do::Train(task(1))]);
        let effects = participant.step(On::Trained { contribution: contribution(1) }).unwrap();
        assert_eq!(effects, [Do::Record, Do::Submit { contribution: contribution(1) }]);
        assert_eq!(participant.step(On::Settled { round: 1 }), Ok(vec![Do::Record]));
        assert_eq!(participant.standing(), "waiting");
    }

    #[test]
    fn a_task_that_is_assigned_again_is_not_trained_again() {
        let mut participant = submitted(1);
        let again = participant.step(On::Assigned { task: task(1) }).unwrap();
        assert_eq!(again, [Do::Submit { contribution: contribution(1) }]);
        let mut other = task(1);
        other.model = ModelDigest([9; 32]);
        assert!(matches!(
            participant.step(On::Assigned { task: other }),
            Err(Rejection::OtherBase { .. })
        ));
    }

    #[test]
    fn a_rolled_back_coordinator_is_refused() {
        let mut participant = submitted(2);
        let before = participant.clone();
        let error = participant.step(On::Assigned { task: task(1) }).unwrap_err();
        assert_eq!(error, Rejection::OlderRound { got: 1, done: 2 });
        assert_eq!(participant, before);
    }

    #[test]
    fn nothing_is_trained_before_the_plan_is_agreed_to() {
        let mut participant = Participant::new("sample-1".parse().unwrap(), PLAN);
        assert!(participant.step(On::Assigned { task: task(1) }).is_err());
        participant.step(On::Declined { reason: "no".into() }).unwrap();
        assert!(participant.step(On::Assigned { task: task(1) }).is_err());
    }

    #[test]
    fn a_failed_round_stays_failed_and_the_next_one_is_trained() {
        let mut participant = waiting();
        participant.step(On::Assigned { task: task(1) }).unwrap();
        participant.step(On::Failed { round: 1, reason: "budget".into() }).unwrap();
        let again = participant.step(On::Assigned { task: task(1) }).unwrap();
        assert_eq!(again, [Do::Withdraw { round: 1, reason: "budget".into() }]);
        let next = participant.step(On::Assigned { task: task(2) }).unwrap();
        assert_eq!(next[1], Do::Train(task(2)));
    }

    #[test]
    fn a_steward_refuses_at_any_time_and_nothing_leaves_any_more() {
        let no = || On::Declined { reason: "no".into() };
        let mut training = waiting();
        training.step(On::Assigned { task: task(1) }).unwrap();
        for mut participant in [waiting(), training, submitted(1)] {
            let effects = participant.step(no()).unwrap();
            assert_eq!(effects, [Do::Record, Do::Decline { reason: "no".into() }]);
            assert_eq!(participant.standing(), "declined");
            assert!(!participant.has_to_train(&task(1)));
            assert!(!participant.has_to_send(&contribution(1)));
            assert!(participant.step(On::Trained { contribution: contribution(1) }).is_err());
            assert!(participant.step(On::Assigned { task: task(2) }).is_err());
            assert_eq!(participant.step(no()), Ok(Vec::new()));
            assert_eq!(participant.pending(), Some(Do::Decline { reason: "no".into() }));
            // Thinking better of it.
            let effects = participant.step(On::Accepted).unwrap();
            assert_eq!(effects, [Do::Record, Do::CheckIn { plan: PLAN }]);
        }
    }

    #[test]
    fn replay_ends_where_the_events_did() {
        let events = [
            On::Accepted,
            On::Assigned { task: task(1) },
            On::Trained { contribution: contribution(1) },
        ];
        let replayed = Participant::new("sample-1".parse().unwrap(), PLAN).replay(events).unwrap();
        assert_eq!(replayed, submitted(1));
        assert_eq!(replayed.pending(), Some(Do::Submit { contribution: contribution(1) }));
    }
}
