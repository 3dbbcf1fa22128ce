//! Rooms 9 and 10: what a round's updates make of the model, and how good that is.

use std::borrow::Cow;
use std::num::NonZero;
use std::sync::Arc;

use comity_burn_models::{Evaluation, FineTuning, fine_tune, personal_model};
use comity_federation::{Accumulator, Event, Fold, ModelDigest, Parameters, UpdateDigest, Updates};

use super::scoring::{bytes_by_country, client_rounds, epsilon_by_country, seconds};
use super::updates::{Chosen, Summed};
use super::{Engine, ranks};
use crate::institutions::TrustedCoordinator;
use crate::{Fairness, Progress, RoundScore, SimulationError};

impl Engine<'_> {
    /// Rooms 9 and 10: the exact sum, the server's step, and the score of the new model.
    pub(super) fn aggregate(
        &mut self,
        round: u32,
        updates: &[(UpdateDigest, u64)],
        gain: f64,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        if round == 0 {
            return self.conclude(updates, observe);
        }
        let (next, digest) = self.next_model(round, updates, gain)?;
        self.model = Arc::new(next);
        let model = self.simulation.plan.model_of(&self.model)?;
        let n_threads = self.simulation.n_threads;
        let score = ranks::of_first(self.ranks, || self.scoring.score(&model, n_threads))?;
        let newest = self.run.n_rounds() - 1;
        let record = self.run.rounds_from(newest).pop().expect("a round is being aggregated");
        let Self { simulation, states, model: newest_model, .. } = &*self;
        let own = self.client_scores(|position| {
            let state = states.get(position)?;
            Ok(personal_model(simulation.plan, newest_model, state.as_ref())?)
        })?;
        let shared = self.trusted.as_ref().map(TrustedCoordinator::epsilon);
        let epsilon = |position: usize| shared.or(self.clients[position].epsilon);
        let clients = client_rounds(&record, |id| {
            let position = self.positions[id];
            (epsilon(position), own.as_ref().and_then(|own| own[position]))
        });
        let spent = self.ids.iter().enumerate().map(|(position, id)| (id, epsilon(position)));
        let score = RoundScore {
            round,
            accuracy: score.accuracy,
            loss: score.loss,
            backdoor: score.backdoor,
            model: digest,
            seconds: self.round_started.elapsed().as_secs_f64(),
            clock_s: seconds(self.now),
            n_contributions: record.contributions.len() as u32,
            n_missing: record.missing.len() as u32,
            epsilon: epsilon_by_country(spent),
            bytes: bytes_by_country(&record),
            fairness: own.as_deref().and_then(fairness),
        };
        observe(Progress::Round { score: &score, clients: &clients });
        self.rounds.push(score);
        self.reckoned.forget();
        // They are folded, and nobody asks for them again.
        updates.iter().for_each(|(update, _)| self.updates.remove(update));
        self.save(round)?;
        self.published(round, digest, observe)
    }

    /// The run learns that the round's model is there.
    pub(super) fn published(
        &mut self,
        round: u32,
        model: ModelDigest,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        self.step_run(Event::Aggregated { round, model, statistics: None }, observe)?;
        self.forget();
        Ok(())
    }

    fn next_model(
        &mut self,
        round: u32,
        updates: &[(UpdateDigest, u64)],
        gain: f64,
    ) -> Result<(Parameters, ModelDigest), SimulationError> {
        let plan = self.simulation.plan;
        if let Some(trusted) = &mut self.trusted {
            let deltas: Vec<_> = updates
                .iter()
                .map(|(digest, _)| self.updates.bytes(digest))
                .collect::<Result<_, _>>()?;
            let deltas: Vec<&[u8]> = deltas.iter().map(AsRef::as_ref).collect();
            return Ok(trusted.step(&self.step, &self.model, &deltas)?);
        }
        let weights: Vec<u64> = updates.iter().map(|(_, weight)| *weight).collect();
        let next = if let Some(sum) = &mut self.sum {
            let (sum, total, n_updates) = ranks::sum(self.ranks, sum.take());
            let expected = (weights.iter().sum::<u64>(), weights.len());
            assert_eq!((total, n_updates), expected, "what was accepted is what counts");
            self.stepped(weights, gain, &mut Summed(&sum))?
        } else {
            let mut chosen = Chosen {
                store: &self.updates,
                digests: updates.iter().map(|(digest, _)| *digest).collect(),
                encoding: plan.update_encoding(round),
                n_coordinates: self.n_coordinates,
                encoded: Vec::new(),
            };
            self.stepped(weights, gain, &mut chosen)?
        };
        let digest = next.digest();
        Ok((next, digest))
    }

    /// The model after the strategy's step on `updates`.
    fn stepped<U: Updates<Error = std::io::Error>>(
        &self,
        weights: Vec<u64>,
        gain: f64,
        updates: &mut U,
    ) -> Result<Parameters, SimulationError> {
        let mut fold = Fold::new(self.step.clone(), weights, gain, updates)?;
        let mut next = Vec::with_capacity(self.model.values().len());
        for range in fold.chunks() {
            next.extend(fold.step(range, &mut self.model.values(), updates)?);
        }
        Ok(Parameters::new(next))
    }

    /// Rooms 9 and 10 of round 0: the sums of the statistics, and the first model with what they say.
    fn conclude(
        &mut self,
        updates: &[(UpdateDigest, u64)],
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SimulationError> {
        let plan = self.simulation.plan;
        let n_values = self.updates.bytes(&updates[0].0)?.len() / 4;
        let mut sum = Accumulator::new(n_values);
        for (digest, weight) in updates {
            sum.add(&self.updates.bytes(digest)?, *weight);
        }
        let sums = sum.into_sum();
        if let Some((start, values)) = plan.standardisation(&sums)? {
            let mut model = self.model.values().to_vec();
            model[start..start + values.len()].copy_from_slice(&values);
            self.model = Arc::new(Parameters::new(model));
        }
        let model = self.model.digest();
        self.step_run(Event::Aggregated { round: 0, model, statistics: Some(sums) }, observe)?;
        self.forget();
        Ok(())
    }

    /// How the last model does at each client once the client has trained it on, on its own records.
    pub(super) fn fine_tuned(
        &self,
        n_epochs: NonZero<u32>,
    ) -> Result<Option<Fairness>, SimulationError> {
        let Self { simulation, ids, states, model, .. } = self;
        let plan_digest = self.run.plan_digest();
        let own = self.client_scores(|position| {
            let (shard, state) = (simulation.data.shard(position), states.get(position)?);
            if shard.is_empty() {
                return Ok(personal_model(simulation.plan, model, state.as_ref())?);
            }
            let task = FineTuning {
                plan: simulation.plan,
                plan_digest,
                model,
                state: state.as_ref(),
                client: &ids[position],
                dataset: &shard,
                n_epochs: n_epochs.get(),
                device: simulation.device,
                n_threads: NonZero::<usize>::MIN,
            };
            Ok(Cow::Owned(fine_tune(&task, &mut |_, _| {})?))
        })?;
        Ok(own.as_deref().and_then(fairness))
    }

    /// How a model of its own does on what each client keeps for testing, in the plan's order; `None` where no
    /// client keeps anything.
    fn client_scores<'m>(
        &self,
        model_of: impl Fn(usize) -> Result<Cow<'m, Parameters>, SimulationError> + Sync,
    ) -> Result<Option<Vec<Option<Evaluation>>>, SimulationError> {
        let is_mine = |client| self.is_mine(client);
        let own = self.scoring.score_clients(model_of, self.simulation, &is_mine)?;
        Ok(own.map(|own| ranks::of_all(self.ranks, own)))
    }
}

/// How the clients' scores lie.
fn fairness(own: &[Option<Evaluation>]) -> Option<Fairness> {
    Fairness::of(own.iter().flatten().map(|score| score.accuracy).collect())
}
