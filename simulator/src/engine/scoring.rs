//! How good a round's model is: on the public test set, at each client, and at what attackers taught it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::thread;

use comity_burn_models::{Device, Evaluation, TrainError, evaluate, normalisation};
use comity_datasets::Dataset;
use comity_federation::{ClientId, Country, Parameters, Plan, RoundReport, Time};
use serde::{Deserialize, Serialize};

use super::Simulation;
use crate::conduct::Trigger;
use crate::{ClientRound, FederationData, SimulationError};

/// Test examples that the device holds at once.
const EVALUATION_BATCH: usize = 500;

/// What a model is scored on.
pub(super) struct Scoring<'a> {
    plan: &'a Plan,
    device: &'a Device,
    test: &'a Dataset,
    /// The test examples of other classes than the trigger's, all of which show it.
    triggered: Option<Dataset>,
}

/// A model's figures on the public test set.
#[derive(Serialize, Deserialize)]
pub(super) struct Score {
    pub(super) accuracy: f64,
    pub(super) loss: f64,
    /// Share of the triggered examples that the model takes for the trigger's class.
    pub(super) backdoor: Option<f64>,
}

impl<'a> Scoring<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        data: &'a FederationData,
        device: &'a Device,
        trigger: Option<&Trigger>,
    ) -> Result<Self, SimulationError> {
        let test = &data.test;
        let triggered = match trigger {
            None => None,
            Some(trigger) => {
                let others: Vec<usize> =
                    (0..test.len()).filter(|row| test.labels()[*row] != trigger.target).collect();
                let stamped = trigger.stamp(&test.subset(&others), others.len())?;
                Some(stamped.relabelled(|_, _| trigger.target)?)
            }
        };
        Ok(Self { plan, device, test, triggered })
    }

    /// Scores a model on the public test data, on `n_threads` cores.
    pub(super) fn score(
        &self,
        model: &Parameters,
        n_threads: NonZero<usize>,
    ) -> Result<Score, SimulationError> {
        let on = |examples: &Dataset| self.on(model, examples, n_threads);
        let public = on(self.test)?;
        let backdoor = self.triggered.as_ref().filter(|examples| !examples.is_empty());
        Ok(Score {
            accuracy: public.accuracy,
            loss: public.loss,
            backdoor: backdoor.map(on).transpose()?.map(|score| score.accuracy),
        })
    }

    /// How each client's model, which is the round's with the client's own layers, does on what the client keeps
    /// for testing, in the plan's order; `None` where no client keeps anything.
    pub(super) fn score_clients<'m>(
        &self,
        model_of: impl Fn(usize) -> Result<Cow<'m, Parameters>, SimulationError> + Sync,
        simulation: &Simulation<'_>,
        is_wanted: &dyn Fn(usize) -> bool,
    ) -> Result<Option<Vec<Option<Evaluation>>>, SimulationError> {
        let data = simulation.data;
        if !data.has_client_tests() {
            return Ok(None);
        }
        let wanted: Vec<bool> = (0..data.n_clients()).map(is_wanted).collect();
        let score = |position: usize| -> Result<Option<Evaluation>, SimulationError> {
            let test = data.client_test(position).filter(|_| wanted[position]);
            let Some(test) = test else { return Ok(None) };
            let model = model_of(position)?;
            Ok(Some(self.on(&model, &test, NonZero::<usize>::MIN)?))
        };
        let n_threads = simulation.n_threads.get();
        let n_each = data.n_clients().div_ceil(n_threads).max(1);
        let positions: Vec<usize> = (0..data.n_clients()).collect();
        let scores = thread::scope(|scope| {
            let workers: Vec<_> = positions
                .chunks(n_each)
                .map(|positions| {
                    scope.spawn(|| positions.iter().map(|p| score(*p)).collect::<Vec<_>>())
                })
                .collect();
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().flat_map(join).collect::<Result<_, _>>()
        });
        scores.map(Some)
    }

    fn on(
        &self,
        model: &Parameters,
        examples: &Dataset,
        n_threads: NonZero<usize>,
    ) -> Result<Evaluation, TrainError> {
        let (spec, normalise) = (&self.plan.model, normalisation(&self.plan.data));
        evaluate(spec, model, examples, normalise, self.device, EVALUATION_BATCH, n_threads)
    }
}

/// Everybody's part in the round of `record`, in the order of their ids; `state` gives a client's ε so far
/// and its score on its own records.
pub(super) fn client_rounds(
    record: &RoundReport,
    state: impl Fn(&ClientId) -> (Option<f64>, Option<Evaluation>),
) -> Vec<ClientRound> {
    let round = |client: &ClientId| {
        let (epsilon, own) = state(client);
        ClientRound {
            round: record.round,
            client: client.clone(),
            missing: None,
            staleness: 0,
            bytes: 0,
            epsilon,
            arrived_s: None,
            accuracy: own.map(|own| own.accuracy),
            loss: own.map(|own| own.loss),
        }
    };
    let contributed = record.contributions.iter().map(|c| ClientRound {
        staleness: c.staleness,
        bytes: c.bytes,
        arrived_s: Some(seconds(c.at)),
        ..round(&c.client)
    });
    let missing = record
        .missing
        .iter()
        .map(|(client, reason)| ClientRound { missing: Some(reason.clone()), ..round(client) });
    let mut clients: Vec<ClientRound> = contributed.chain(missing).collect();
    clients.sort_by(|a, b| a.client.cmp(&b.client));
    clients
}

/// The largest ε of each country's clients; `None` where one of them has no DP.
pub(super) fn epsilon_by_country<'a>(
    clients: impl Iterator<Item = (&'a ClientId, Option<f64>)>,
) -> BTreeMap<Country, Option<f64>> {
    let mut by_country: BTreeMap<Country, Option<f64>> = BTreeMap::new();
    for (id, epsilon) in clients {
        by_country
            .entry(id.country())
            .and_modify(|largest| *largest = largest.zip(epsilon).map(|(a, b)| a.max(b)))
            .or_insert(epsilon);
    }
    by_country
}

/// The bytes of a round's contributions, by country.
pub(super) fn bytes_by_country(record: &RoundReport) -> BTreeMap<Country, u64> {
    let mut by_country = BTreeMap::new();
    for contribution in &record.contributions {
        *by_country.entry(contribution.client.country()).or_default() += contribution.bytes;
    }
    by_country
}

pub(super) fn seconds(time: Time) -> f64 {
    time.0 as f64 / 1000.0
}
