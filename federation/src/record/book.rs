//! A client's own count of one run's records: what it holds, and what it therefore does not believe.
//!
//! ```text
//!  released ──receipt──► accounted for by a later record: counted, or missing with a reason
//!                              └─ neither ─► Dropped
//!  record n ──► record n + 1: names record n, starts from its model, lists who is in the plan
//!       └─ another record n, an older one, a gap ─► Fork, Older, Gap
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::{Receipt, RoundRecord};
use crate::run::LATE_STILL_TRAINING;
use crate::{
    ClientId, Contribution, ModelDigest, Plan, PlanDigest, RecordDigest, RunId, Task, UpdateDigest,
};

/// What the parties agreed on before the first record; every record and receipt is held against it.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Name of the federation.
    pub federation: &'a str,
    /// Which run.
    pub run: &'a RunId,
    /// Under which plan.
    pub plan: &'a Plan,
    /// The plan's digest.
    pub plan_digest: PlanDigest,
    /// Whose book it is; `None`: nobody's who contributes.
    pub me: Option<&'a ClientId>,
}

/// Why a record or a receipt cannot be believed. The coordinator signed it, so it is also the proof.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// It is of another federation, run or plan.
    #[error("the coordinator signed a paper of another {0}")]
    Other(&'static str),
    /// Two records of one round.
    #[error(
        "the coordinator signed two records of round {round}: this client holds {held}, and now it is shown {got}; \
         others may have been shown a third"
    )]
    Fork {
        /// Which round.
        round: u32,
        /// The one that came first.
        held: RecordDigest,
        /// The other one.
        got: RecordDigest,
    },
    /// It is older than the oldest that is held, or skips one.
    #[error(
        "the record of round {got} does not follow the one of round {held:?} that this client holds"
    )]
    Gap {
        /// The latest that is held.
        held: Option<u32>,
        /// Of the record.
        got: u32,
    },
    /// It names another record before it.
    #[error(
        "the record of round {round} names another record before it than the one that this client holds: the coordinator \
         rewrote the run's past"
    )]
    Previous {
        /// Of the record.
        round: u32,
    },
    /// It starts from another model.
    #[error(
        "round {round} started from model {got}, not from {expected}, which the round before ended in"
    )]
    Base {
        /// Of the record.
        round: u32,
        /// By the record before, or by the plan.
        expected: ModelDigest,
        /// By the record.
        got: ModelDigest,
    },
    /// Somebody is in it whom the plan does not name or the round did not ask.
    #[error("the record of round {round} lists {client}, {why}")]
    Stranger {
        /// Of the record.
        round: u32,
        /// Who.
        client: ClientId,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A weight or an age that the plan does not give.
    #[error(
        "the record of round {round} counts {client} with {what} {got} where the plan says {expected}"
    )]
    Weight {
        /// Of the record.
        round: u32,
        /// Whose.
        client: ClientId,
        /// `weight` or `staleness`.
        what: &'static str,
        /// By the record.
        got: u64,
        /// By the plan: the weight, or the largest staleness.
        expected: u64,
    },
    /// This client is in it with an update that it did not make.
    #[error(
        "the record of round {round} counts update {update} as this client's, which it never released"
    )]
    Foreign {
        /// Of the record.
        round: u32,
        /// Of the update.
        update: UpdateDigest,
    },
    /// This client holds a receipt for an update that is neither counted nor missing with a reason.
    #[error(
        "the coordinator signed a receipt for this client's update of round {trained}, and the record of round {round} \
         leaves it out without a word"
    )]
    Dropped {
        /// The round of the update.
        trained: u32,
        /// Of the record.
        round: u32,
    },
    /// A receipt says something else than what was sent.
    #[error(
        "the coordinator's receipt for round {round} is not of what was sent: its {what} is another"
    )]
    Receipt {
        /// Of the receipt.
        round: u32,
        /// What differs.
        what: &'static str,
    },
    /// The run ended without the records that it ends with.
    #[error(
        "the run is said to have finished with model {got}, but its records end in round {held:?} of {rounds}"
    )]
    Unfinished {
        /// The latest record that is held.
        held: Option<u32>,
        /// Of the plan.
        rounds: u32,
        /// As announced.
        got: ModelDigest,
    },
    /// A signature under it is not there, or is somebody else's.
    #[error("{0}")]
    Signature(String),
}

/// Why a task is not served; the client says so and waits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongTask {
    /// A round that is over by a record that the client holds.
    #[error(
        "round {got} is over: this client holds the signed record of round {held}. The coordinator was rolled back to an \
         older copy of its folder, or was mixed up with another; restore the folder that knows that record"
    )]
    Older {
        /// Of the task.
        got: u32,
        /// The latest record that is held.
        held: u32,
    },
    /// No record leads to it.
    #[error("round {got} cannot begin before this client was shown the record of round {needed}")]
    NoRecord {
        /// Of the task.
        got: u32,
        /// The round before.
        needed: u32,
    },
    /// Another model than the records lead to.
    #[error("round {round} is to start from model {got}; the signed records lead to {expected}")]
    OtherModel {
        /// Of the task.
        round: u32,
        /// By the records, or by the plan.
        expected: ModelDigest,
        /// By the task.
        got: ModelDigest,
    },
}

/// What a record that may be believed is to the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The next one.
    Next,
    /// One that is held already.
    Held,
}

/// What a record says of the book's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Counted {
        trained: u32,
        update: UpdateDigest,
    },
    Missing {
        /// Whether its update may count in a later round.
        still_asked: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    digest: RecordDigest,
    model: ModelDigest,
    said: Said,
}

/// The records of one run that a member holds, and what it released itself. See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordBook {
    held: BTreeMap<u32, Held>,
    released: BTreeMap<u32, UpdateDigest>,
    receipts: BTreeMap<u32, UpdateDigest>,
    start: Option<ModelDigest>,
    breach: Option<String>,
}

impl RecordBook {
    /// Notes the run's first model, where the owner has computed it from the plan.
    pub fn start_with(&mut self, model: ModelDigest) {
        self.start = Some(model);
    }

    /// The run's first model, if it was noted.
    #[must_use]
    pub fn start(&self) -> Option<ModelDigest> {
        self.start
    }

    /// Notes an update that the owner released.
    pub fn released(&mut self, contribution: &Contribution) {
        self.released.insert(contribution.round, contribution.update);
    }

    /// Whether the owner released anything, or holds a record.
    #[must_use]
    pub fn took_part(&self) -> bool {
        !self.released.is_empty() || !self.held.is_empty()
    }

    /// The latest record that is held: its round and digest.
    #[must_use]
    pub fn latest(&self) -> Option<(u32, RecordDigest)> {
        self.held.last_key_value().map(|(round, held)| (*round, held.digest))
    }

    /// The digest of the record of `round`, if it is held.
    #[must_use]
    pub fn digest(&self, round: u32) -> Option<RecordDigest> {
        self.held.get(&round).map(|held| held.digest)
    }

    /// Notes why the coordinator of this run is not believed any more.
    pub fn break_with(&mut self, reason: String) {
        self.breach.get_or_insert(reason);
    }

    /// Why the coordinator of this run is not believed any more.
    #[must_use]
    pub fn breach(&self) -> Option<&str> {
        self.breach.as_deref()
    }

    /// Whether `record` is the next one, and says nothing that the owner knows to be otherwise. Its signature
    /// is another matter.
    ///
    /// # Errors
    /// [`Breach`] names what is wrong.
    pub fn check(&self, terms: &Terms<'_>, record: &RoundRecord) -> Result<Standing, Breach> {
        self.of_these(terms, &record.federation, &record.run, record.plan)?;
        let (round, got) = (record.round, record.digest());
        if let Some(held) = self.held.get(&round) {
            let held = held.digest;
            return if held == got {
                Ok(Standing::Held)
            } else {
                Err(Breach::Fork { round, held, got })
            };
        }
        let latest = self.held.last_key_value();
        let expected = latest.map_or(terms.plan.first_round(), |(round, _)| round + 1);
        if round != expected || round > terms.plan.rounds {
            return Err(Breach::Gap { held: latest.map(|(round, _)| *round), got: round });
        }
        if record.previous != latest.map(|(_, held)| held.digest) {
            return Err(Breach::Previous { round });
        }
        let base = latest.map(|(_, held)| held.model).or(self.start);
        if let Some(expected) = base.filter(|base| *base != record.base) {
            return Err(Breach::Base { round, expected, got: record.base });
        }
        members(terms.plan, record)?;
        let said = said(terms.me, record);
        if let Said::Counted { trained, update } = said
            && self.released.get(&trained) != Some(&update)
        {
            return Err(Breach::Foreign { round, update });
        }
        for (trained, update) in &self.receipts {
            self.accounted(*trained, *update, Some((round, said)))?;
        }
        Ok(Standing::Next)
    }

    /// Takes a record that [`check`](Self::check) found to be the next one.
    pub fn take(&mut self, terms: &Terms<'_>, record: &RoundRecord) {
        let (digest, model) = (record.digest(), record.model);
        self.held.insert(record.round, Held { digest, model, said: said(terms.me, record) });
    }

    /// Whether `receipt` is of what the owner sent, and goes with the records that it holds.
    ///
    /// # Errors
    /// [`Breach`] names what is wrong.
    pub fn check_receipt(&self, terms: &Terms<'_>, receipt: &Receipt) -> Result<(), Breach> {
        self.of_these(terms, &receipt.federation, &receipt.run, receipt.plan)?;
        let round = receipt.round;
        let differs = |what| Err(Breach::Receipt { round, what });
        if terms.me != Some(&receipt.client) {
            return differs("client");
        }
        if self.released.get(&round) != Some(&receipt.update) {
            return differs("update");
        }
        if Some(receipt.weight) != weight(terms.plan, &receipt.client, round) {
            return differs("weight");
        }
        self.accounted(round, receipt.update, None)
    }

    /// Takes a receipt that [`check_receipt`](Self::check_receipt) found in order.
    pub fn take_receipt(&mut self, receipt: &Receipt) {
        self.receipts.insert(receipt.round, receipt.update);
    }

    /// Whether `task` is what the records lead to.
    ///
    /// Where the plan takes late updates, an earlier round may be asked for again as long as its update is
    /// still wanted.
    ///
    /// # Errors
    /// [`WrongTask`] otherwise.
    pub fn check_task(&self, plan: &Plan, task: &Task) -> Result<(), WrongTask> {
        let got = task.round;
        if let Some((held, _)) = self.latest()
            && got + plan.staleness_max() <= held
        {
            return Err(WrongTask::Older { got, held });
        }
        let expected = match got.checked_sub(1).filter(|_| got > plan.first_round()) {
            // The first model of a large plan is not computed by everybody.
            None => self.start.unwrap_or(task.model),
            Some(needed) => {
                let before = self.held.get(&needed);
                before.ok_or(WrongTask::NoRecord { got, needed })?.model
            }
        };
        if task.model == expected {
            Ok(())
        } else {
            Err(WrongTask::OtherModel { round: got, expected, got: task.model })
        }
    }

    /// Whether the records lead to `model`, with which the run is said to have finished.
    ///
    /// # Errors
    /// [`Breach::Unfinished`] otherwise.
    pub fn check_finish(&self, plan: &Plan, model: ModelDigest) -> Result<(), Breach> {
        match self.held.last_key_value() {
            Some((round, held)) if *round == plan.rounds && held.model == model => Ok(()),
            latest => Err(Breach::Unfinished {
                held: latest.map(|(round, _)| *round),
                rounds: plan.rounds,
                got: model,
            }),
        }
    }

    fn of_these(
        &self,
        terms: &Terms<'_>,
        federation: &str,
        run: &RunId,
        plan: PlanDigest,
    ) -> Result<(), Breach> {
        if federation != terms.federation {
            return Err(Breach::Other("federation"));
        }
        if run != terms.run {
            return Err(Breach::Other("run"));
        }
        if plan != terms.plan_digest {
            return Err(Breach::Other("plan"));
        }
        Ok(())
    }

    /// Whether the update that was trained for `trained` is counted, missing with a reason, or still to come, by
    /// the records held and `next`.
    fn accounted(
        &self,
        trained: u32,
        update: UpdateDigest,
        next: Option<(u32, Said)>,
    ) -> Result<(), Breach> {
        let held = self.held.range(trained..).map(|(round, held)| (*round, held.said));
        for (round, said) in held.chain(next.filter(|(round, _)| *round >= trained)) {
            match said {
                Said::Counted { trained: of, update: counted } if of == trained => {
                    return if counted == update {
                        Ok(())
                    } else {
                        Err(Breach::Foreign { round, update: counted })
                    };
                }
                Said::Missing { still_asked: false } => return Ok(()),
                Said::Missing { still_asked: true } => {}
                Said::Nothing | Said::Counted { .. } => {
                    return Err(Breach::Dropped { trained, round });
                }
            }
        }
        Ok(())
    }
}

/// What `record` says of `me`.
fn said(me: Option<&ClientId>, record: &RoundRecord) -> Said {
    let Some(me) = me else { return Said::Nothing };
    if let Some(counted) = record.contributions.iter().find(|c| c.client == *me) {
        let trained = record.round.saturating_sub(counted.staleness);
        return Said::Counted { trained, update: counted.update };
    }
    match record.missing.iter().find(|(client, _)| client == me) {
        Some((_, reason)) => Said::Missing { still_asked: reason == LATE_STILL_TRAINING },
        None => Said::Nothing,
    }
}

/// The weight of `client` in `round`, if the plan names it.
fn weight(plan: &Plan, client: &ClientId, round: u32) -> Option<u64> {
    let named = plan.client(client)?;
    // Statistics are sums: everybody's count once.
    Some(if round == 0 { 1 } else { plan.weight(named) })
}

/// Whether everybody in `record` may be there, once, and as the plan says.
fn members(plan: &Plan, record: &RoundRecord) -> Result<(), Breach> {
    let round = record.round;
    let stranger =
        |client: &ClientId, why| Err(Breach::Stranger { round, client: client.clone(), why });
    let named: BTreeSet<&ClientId> = plan.cohort.clients.iter().map(|named| &named.id).collect();
    let mut asked = BTreeSet::new();
    for client in &record.cohort {
        if !named.contains(client) {
            return stranger(client, "whom the plan does not name");
        }
        if !asked.insert(client) {
            return stranger(client, "twice");
        }
    }
    let mut answered = BTreeSet::new();
    let contributed = record.contributions.iter().map(|counted| &counted.client);
    for client in contributed.chain(record.missing.iter().map(|(client, _)| client)) {
        if !asked.contains(client) {
            return stranger(client, "who was not asked in this round");
        }
        if !answered.insert(client) {
            return stranger(client, "twice");
        }
    }
    for counted in &record.contributions {
        let differs = |what, got, expected| {
            let client = counted.client.clone();
            Err(Breach::Weight { round, client, what, got, expected })
        };
        let staleness_max = plan.staleness_max().min(round.saturating_sub(1));
        if counted.staleness > staleness_max {
            return differs("staleness", counted.staleness.into(), staleness_max.into());
        }
        let expected = weight(plan, &counted.client, round).unwrap_or_default();
        if counted.weight != expected {
            return differs("weight", counted.weight, expected);
        }
    }
    Ok(())
}

/// The digest of the first model of a run of `plan`, computed in pieces; `None` if the model has more than
/// `n_parameters_max`, for whom the time it takes is too long.
#[must_use]
pub fn first_model(plan: &Plan, n_parameters_max: usize) -> Option<ModelDigest> {
    let manifest = plan.manifest().ok()?;
    if manifest.n_parameters() > n_parameters_max {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    let hashed = manifest.initialise(plan.seed, |values| {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
        Ok::<_, std::convert::Infallible>(())
    });
    hashed.map(|()| ModelDigest(*hasher.finalize().as_bytes())).ok()
}
