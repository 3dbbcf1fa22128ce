//! Noise for whole institutions: DP-FedAvg (McMahan et al. 2018, "Learning differentially private
//! recurrent language models", algorithm 1) by the one that sees every change in clear.
//!
//! It exists in the simulator only: a deployed client declines such plans, because its own noise is
//! what it trusts.  Here it is for federations of many, where it says what a thousand institutions
//! would pay for hiding that one of them takes part.

use comity_federation::{ClientId, ModelDigest, Parameters, Plan, RunId, ServerStep};
use comity_privacy::{
    Ledger, LedgerEntry, Limit, PrivacyError, PrivacyPlan, ReservationKey, Session, Statement,
    clip_factor,
};

use crate::{NoiseMode, SimulationError};

/// Whose randomness it is, where the seeds of clients are told apart by their ids.
const COORDINATOR: &str = "coordinator";

/// The coordinator as the one that draws cohorts in secret and adds the noise.
pub(crate) struct TrustedCoordinator {
    plan: PrivacyPlan,
    n_institutions: u64,
    ledger: Ledger,
    entries: Vec<LedgerEntry>,
    /// The round that was drawn and not yet stepped.
    open: Option<Session>,
}

impl TrustedCoordinator {
    /// `None` unless `plan` protects whole institutions.
    pub(crate) fn new(plan: &Plan) -> Result<Option<Self>, SimulationError> {
        let Some(privacy) = plan.institutions_plan()? else { return Ok(None) };
        let limit = Limit { budget: Some(privacy.budget()), exempt_allowed: false };
        Ok(Some(Self {
            plan: privacy,
            n_institutions: plan.cohort.clients.len() as u64,
            ledger: Ledger::new(limit),
            entries: Vec::new(),
            open: None,
        }))
    }

    /// Debits the round, then draws its cohort: each of `present` with the plan's probability.
    pub(crate) fn draw(
        &mut self,
        run: &RunId,
        round: u32,
        present: &[ClientId],
        noise: NoiseMode,
        seed: u64,
    ) -> Result<Vec<ClientId>, PrivacyError> {
        let randomness = noise.randomness(seed, COORDINATOR, round)?;
        let key = ReservationKey { run: run.to_string(), round };
        let charge = self.plan.charge(&randomness);
        let reservation = self.ledger.reserve(&mut self.entries, key, charge)?;
        let mut session = self.plan.session(reservation, randomness)?;
        let drawn = session.next_batch(present.len())?;
        self.open = Some(session);
        Ok(drawn.into_iter().map(|position| present[position].clone()).collect())
    }

    /// The next model: what the server's `step` makes of `base` and the private mean of `deltas`, which lie on
    /// the plan's grid.
    ///
    /// Each delta is clipped as one, their sum is noised, and it is divided by the expected cohort: how
    /// many there really were is not told.
    pub(crate) fn step(
        &mut self,
        step: &ServerStep,
        base: &Parameters,
        deltas: &[&[u8]],
    ) -> Result<(Parameters, ModelDigest), PrivacyError> {
        let mut session = self.open.take().ok_or(PrivacyError::NoBatch)?;
        let grid = step.grid();
        let mut sum = vec![0.0_f64; step.n_shared()];
        for bytes in deltas {
            let words = bytes.as_chunks::<4>().0;
            let change = |word: &[u8; 4]| grid.mean(i64::from(i32::from_le_bytes(*word)), 1);
            let norm = words.iter().map(|word| change(word).powi(2)).sum::<f64>().sqrt();
            let factor = clip_factor(norm, session.clip_norm_l2());
            for (sum, word) in sum.iter_mut().zip(words) {
                *sum += factor * change(word);
            }
        }
        let noise =
            session.noise_ahead()?.lanes(1).remove(0).next().ok_or(PrivacyError::NoBatch)??;
        let mean = session.privatise(&sum, noise)?;
        // What follows on the noised mean is post-processing.
        let released = session.finish(step.follow(base, &mean));
        let digest = released.value().digest();
        self.ledger.commit(&mut self.entries, released.receipt(), digest.0)?;
        Ok((released.into_value(), digest))
    }

    /// What its ledger wrote.
    pub(crate) fn entries(&self) -> Vec<LedgerEntry> {
        self.entries.clone()
    }

    /// The ledger as `entries` say, between two rounds.
    pub(crate) fn replay(&mut self, entries: Vec<LedgerEntry>) -> Result<(), PrivacyError> {
        self.ledger = Ledger::replay(self.ledger.limit(), entries.iter().cloned())?;
        self.entries = entries;
        Ok(())
    }

    /// ε of all rounds so far, at the plan's δ.
    pub(crate) fn epsilon(&self) -> f64 {
        self.ledger.spent_at(self.plan.budget().delta.get()).epsilon
    }

    /// What was spent, on whom, and what the figures do not cover.
    pub(crate) fn statement(&self, noise: NoiseMode) -> Statement {
        let mut statement = Statement::new(&self.ledger, self.n_institutions);
        if noise == NoiseMode::Seeded {
            noise.label().clone_into(&mut statement.randomness);
        }
        statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = include_str!("../../examples/institutions/plan.toml");

    fn small() -> Plan {
        let mut plan = Plan::from_toml(PLAN).unwrap();
        plan.cohort.clients.truncate(500);
        plan
    }

    /// A delta on the plan's grid whose every coordinate is `change`.
    fn delta(plan: &Plan, n: usize, change: f64) -> Vec<u8> {
        let word = (change * f64::from(1 << plan.aggregation.fixed_point_bits)) as i32;
        word.to_le_bytes().repeat(n)
    }

    #[test]
    fn one_institution_more_moves_the_model_by_its_clipped_change_and_no_more() {
        let plan = small();
        let privacy = plan.institutions_plan().unwrap().unwrap();
        let (clip, cohort) = (privacy.clip_norm_l2(), f64::from(privacy.batch_expected()));
        let n = plan.manifest().unwrap().n_trainable();
        let step = |deltas: &[&[u8]]| {
            let mut trusted = TrustedCoordinator::new(&plan).unwrap().unwrap();
            let present: Vec<ClientId> =
                plan.cohort.clients.iter().map(|named| named.id.clone()).collect();
            let run: RunId = "sample-1".parse().unwrap();
            trusted.draw(&run, 1, &present, NoiseMode::Seeded, 1).unwrap();
            let base = Parameters::new(vec![0.0; n]);
            trusted.step(&plan.server_step().unwrap(), &base, deltas).unwrap().0
        };
        let quiet = delta(&plan, n, 1e-4);
        for (change, expected) in [(100.0, clip), (1e-3, 1e-3 * (n as f64).sqrt())] {
            let loud = delta(&plan, n, change);
            let without = step(&[&quiet, &quiet]);
            let with = step(&[&quiet, &quiet, &loud]);
            let moved = (with.values().iter().zip(without.values()))
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
                .sum::<f64>()
                .sqrt();
            let expected = plan.aggregation.server_learning_rate * expected / cohort;
            assert!((moved / expected - 1.0).abs() < 1e-2, "{moved} instead of {expected}");
        }
    }
}
