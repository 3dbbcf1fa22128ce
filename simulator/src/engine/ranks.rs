//! One simulation over several processes, each of which trains its part of the clients.
//!
//! Every process drives the same machines through the same events; what one of them computes, the
//! others learn in the same step.  Updates stay where they were made: what is exchanged is their
//! headers and, at the end of a round, their integer sum, which does not depend on who added what.  So
//! any number of processes gives the bits of one.

use std::num::NonZero;

use comity_federation::{Contribution, Plan, PlanError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Engine;
use super::queue::Moment;
use super::wave::Ready;
use crate::SimulationError;

/// The processes that share a simulation.
pub trait Ranks {
    /// Which of them this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// What each hands in, in the order of their ranks.
    fn gather(&self, mine: &[u8]) -> Vec<Vec<u8>>;

    /// The sum over all of each of `values`, in their place.
    fn sum(&self, values: &mut [i64]);
}

/// A process by itself.
#[derive(Clone, Copy, Debug)]
pub struct OneProcess;

impl Ranks for OneProcess {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        vec![mine.to_vec()]
    }

    fn sum(&self, _: &mut [i64]) {}
}

/// Refuses plans of which the processes would have to exchange whole updates.
pub(super) fn check(ranks: &dyn Ranks, plan: &Plan) -> Result<(), PlanError> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let invalid = |key: &'static str, reason: &str| {
        Err(PlanError::Invalid { key, reason: reason.to_owned() })
    };
    if !plan.sums_on_arrival() {
        return invalid(
            "aggregation.strategy",
            "several processes exchange sums only: use a strategy that is a mean of all updates, without \
             country_weight_max, late updates or dp_fedavg, or run in one process",
        );
    }
    if plan.aggregation.update_norm_max_l2.is_some() {
        return invalid(
            "aggregation.update_norm_max_l2",
            "several processes do not see one another's updates: leave it out, or run in one process",
        );
    }
    if plan.analytics.is_some() {
        return invalid(
            "analytics",
            "several processes do not see one another's statistics: leave it out, or run in one process",
        );
    }
    Ok(())
}

/// Whether this process trains the client at this place in the plan.
pub(super) fn is_mine(ranks: &dyn Ranks, client: usize) -> bool {
    client % ranks.size() == ranks.rank()
}

/// Threads of all processes.
pub(super) fn n_workers(ranks: &dyn Ranks, n_threads: NonZero<usize>) -> usize {
    exchanged(ranks, &n_threads.get()).into_iter().sum()
}

/// The sum, total weight and number of all processes' updates, from each one's own.
pub(super) fn sum(
    ranks: &dyn Ranks,
    (mut sum, total, n_updates): (Vec<i64>, u64, usize),
) -> (Vec<i64>, u64, usize) {
    if ranks.size() > 1 {
        ranks.sum(&mut sum);
    }
    let all = exchanged(ranks, &(total, n_updates));
    (sum, all.iter().map(|(total, _)| total).sum(), all.iter().map(|(_, n)| n).sum())
}

/// What the first process works out, in all of them.
pub(super) fn of_first<T: Serialize + DeserializeOwned>(
    ranks: &dyn Ranks,
    work: impl FnOnce() -> Result<T, SimulationError>,
) -> Result<T, SimulationError> {
    if ranks.size() == 1 {
        return work();
    }
    let mine = (ranks.rank() == 0).then(work);
    let told: Option<Result<&T, String>> =
        mine.as_ref().map(|mine| mine.as_ref().map_err(ToString::to_string));
    let told = ranks.gather(&serde_json::to_vec(&told).expect("it is JSON"));
    if let Some(mine) = mine {
        return mine;
    }
    let told: Option<Result<T, String>> = of_json(&told[0]);
    told.expect("the first one told it").map_err(SimulationError::OtherProcess)
}

/// What each process has of something that they have in parts.
pub(super) fn of_all<T: Serialize + DeserializeOwned>(
    ranks: &dyn Ranks,
    mut mine: Vec<Option<T>>,
) -> Vec<Option<T>> {
    if ranks.size() > 1 {
        for told in exchanged(ranks, &mine) {
            for (mine, told) in mine.iter_mut().zip(told) {
                *mine = mine.take().or(told);
            }
        }
    }
    mine
}

/// What each process hands in, in the order of their ranks.
fn exchanged<T: Serialize + DeserializeOwned>(ranks: &dyn Ranks, mine: &T) -> Vec<T> {
    let mine = serde_json::to_vec(mine).expect("it is JSON");
    ranks.gather(&mine).iter().map(|told| of_json(told)).collect()
}

fn of_json<T: DeserializeOwned>(told: &[u8]) -> T {
    serde_json::from_slice(told).expect("the other processes run this very program")
}

/// What one process tells the others of a training.
#[derive(Serialize, Deserialize)]
struct Told {
    moment: Moment,
    client: usize,
    result: Result<Contribution, String>,
    epsilon: Option<f64>,
}

impl Engine<'_> {
    /// As [`is_mine`].
    pub(super) fn is_mine(&self, client: usize) -> bool {
        is_mine(self.ranks, client)
    }

    /// Tells the other processes what became of the own clients' trainings, and learns the others'.
    pub(super) fn exchange(&mut self, trainings: &[(Moment, usize)]) {
        if self.ranks.size() == 1 {
            return;
        }
        let told = |(moment, client): &(Moment, usize)| Told {
            moment: *moment,
            client: *client,
            result: match &self.trained[moment] {
                Ok(ready) => Ok(ready.contribution.clone()),
                Err(reason) => Err(reason.clone()),
            },
            epsilon: self.clients[*client].epsilon,
        };
        let own = trainings.iter().filter(|(_, client)| self.is_mine(*client));
        let mine: Vec<Told> = own.map(told).collect();
        for Told { moment, client, result, epsilon } in
            exchanged(self.ranks, &mine).into_iter().flatten()
        {
            if !self.is_mine(client) {
                let ready = |contribution| Ready { contribution, state: None, saved: None };
                self.trained.insert(moment, result.map(ready));
                self.clients[client].epsilon = epsilon;
            }
        }
    }
}
