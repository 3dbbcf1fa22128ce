//! Noise for whole institutions: DP-FedAvg (McMahan et al. 2018, "Learning differentially private
//! recurrent language models", algorithm 1) by the one that sees every change in clear.
//!
//! It exists in the simulator only: a deployed client declines such plans, because its own noise is
//! what it trusts.  Here it is for federations of many, where it says what a thousand institutions
//! would pay for hiding that one of them takes part.

use comity_federation::{ClientId, ModelDigest, Parameters, Plan, PrivacyTerms, RunId, ServerStep};
use comity_privacy::{
    Ledger, LedgerEntry, Limit, PrivacyError, PrivacyPlan, ReservationKey, Session, Statement,
    clip_factor,
};

use serde::{Deserialize, Serialize};

use crate::{NoiseMode, SimulationError};

/// Whose randomness it is, where the seeds of clients are told apart by their ids.
const COORDINATOR: &str = "coordinator";

/// A clipping norm that follows a quantile of the changes' norms (Andrew et al. 2021, algorithm 1,
/// <https://arxiv.org/abs/1905.03871>).
///
/// Theorem 1 there splits one Gaussian between the changes and the count of those below the bound. Here it is
/// literally one: each institution's vector is `(r clip(D_i / C, 1), s (2 b_i - 1))` with `r² + s² = 1` and
/// `b_i` whether its norm is at most C, so that its norm is at most 1 whatever C is. The count's noise is then
/// `z / (2 s)`, which the plan names, and the changes' `z / r` in units of C. So C, and all that follows from it,
/// is post-processing, and the accounting is that of a plan with a fixed bound.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Adaptive {
    quantile: f64,
    learning_rate: f64,
    /// The count's part of each vector; the changes have the rest.
    s: f64,
}

impl Adaptive {
    fn r(self) -> f64 {
        (1.0 - self.s * self.s).sqrt()
    }

    /// The bound after `clip`, where `last` is the noised mean of the counting coordinate over the expected
    /// cohort.
    fn follow(self, clip: f64, last: f64) -> f64 {
        let below = f64::midpoint(last / self.s, 1.0);
        clip * (-self.learning_rate * (below - self.quantile)).exp()
    }
}

/// What the one that draws cohorts keeps from one round to the next.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// What its ledger wrote.
    entries: Vec<LedgerEntry>,
    /// The bound on a change, where it follows the changes.
    clip_norm_l2: f64,
}

/// The coordinator as the one that draws cohorts in secret and adds the noise.
pub(crate) struct TrustedCoordinator {
    plan: PrivacyPlan,
    n_institutions: u64,
    ledger: Ledger,
    entries: Vec<LedgerEntry>,
    /// Bound on one institution's change, as it stands.
    clip_norm_l2: f64,
    adaptive: Option<Adaptive>,
    /// The round that was drawn and not yet stepped.
    open: Option<Session>,
}

impl TrustedCoordinator {
    /// `None` unless `plan` protects whole institutions.
    pub(crate) fn new(plan: &Plan) -> Result<Option<Self>, SimulationError> {
        let Some(privacy) = plan.institutions_plan()? else { return Ok(None) };
        let limit = Limit { budget: Some(privacy.budget()), exempt_allowed: false };
        let PrivacyTerms::DpFedavg { clip_norm_l2, clip_adaptive, cohort_expected, .. } =
            plan.privacy
        else {
            return Ok(None);
        };
        let adaptive = clip_adaptive.map(|adaptive| Adaptive {
            quantile: adaptive.quantile,
            learning_rate: adaptive.learning_rate,
            s: privacy.real_noise_multiplier() / (2.0 * adaptive.count_noise_std(cohort_expected)),
        });
        Ok(Some(Self {
            clip_norm_l2,
            adaptive,
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
        let n = step.n_shared();
        // With a bound that adapts, changes are summed in units of it, and the last coordinate counts.
        let unit = self.adaptive.map_or(1.0, |adaptive| adaptive.r() / self.clip_norm_l2);
        let mut sum = vec![0.0_f64; n + usize::from(self.adaptive.is_some())];
        for bytes in deltas {
            let words = bytes.as_chunks::<4>().0;
            let change = |word: &[u8; 4]| grid.mean(i64::from(i32::from_le_bytes(*word)), 1);
            let norm = words.iter().map(|word| change(word).powi(2)).sum::<f64>().sqrt();
            let factor = unit * clip_factor(norm, self.clip_norm_l2);
            for (sum, word) in sum[..n].iter_mut().zip(words) {
                *sum += factor * change(word);
            }
            if let Some(adaptive) = self.adaptive {
                sum[n] += if norm <= self.clip_norm_l2 { adaptive.s } else { -adaptive.s };
            }
        }
        let noise =
            session.noise_ahead()?.lanes(1).remove(0).next().ok_or(PrivacyError::NoBatch)??;
        let mut mean = session.privatise(&sum, noise)?;
        if let Some(adaptive) = self.adaptive {
            let last = mean.pop().map_or(0.0, f64::from);
            mean.iter_mut().for_each(|value| *value = (f64::from(*value) / unit) as f32);
            self.clip_norm_l2 = adaptive.follow(self.clip_norm_l2, last);
        }
        // What follows on the noised mean is post-processing.
        let released = session.finish(step.follow(base, &mean));
        let digest = released.value().digest();
        self.ledger.commit(&mut self.entries, released.receipt(), digest.0)?;
        Ok((released.into_value(), digest))
    }

    /// What it keeps from one round to the next.
    pub(crate) fn saved(&self) -> Saved {
        Saved { entries: self.entries.clone(), clip_norm_l2: self.clip_norm_l2 }
    }

    /// Goes on from what was `saved` between two rounds.
    pub(crate) fn go_on(&mut self, saved: Saved) -> Result<(), PrivacyError> {
        self.ledger = Ledger::replay(self.ledger.limit(), saved.entries.iter().cloned())?;
        self.entries = saved.entries;
        self.clip_norm_l2 = saved.clip_norm_l2;
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
    use comity_federation::ClipAdaptive;

    use super::*;

    const PLAN: &str = include_str!("../../examples/institutions/plan.toml");

    fn small() -> Plan {
        let mut plan = Plan::from_toml(PLAN).unwrap();
        plan.cohort.clients.truncate(500);
        plan
    }

    /// From far above and far below, the bound comes to the median of the institutions' norms, and stays there.
    #[test]
    fn an_adaptive_bound_finds_the_quantile() {
        for (start, quantile, expected) in [(0.01, 0.5, 0.5), (20.0, 0.5, 0.5), (0.1, 0.8, 0.8)] {
            let mut plan = small();
            let PrivacyTerms::DpFedavg { clip_norm_l2, clip_adaptive, .. } = &mut plan.privacy
            else {
                unreachable!("the example protects institutions")
            };
            *clip_norm_l2 = start;
            let adaptive =
                ClipAdaptive { quantile, learning_rate: 0.3, count_noise_std: Some(5.0) };
            *clip_adaptive = Some(adaptive);
            let step = plan.server_step().unwrap();
            let n = step.n_shared();
            let present: Vec<ClientId> =
                plan.cohort.clients.iter().map(|named| named.id.clone()).collect();
            // Norms 0.01, 0.02 to 1, at a hundred institutions, which is the expected cohort.
            let deltas: Vec<Vec<u8>> = (1..=100)
                .map(|i| delta(&plan, n, f64::from(i) / 100.0 / (n as f64).sqrt()))
                .collect();
            let deltas: Vec<&[u8]> = deltas.iter().map(Vec::as_slice).collect();
            let mut trusted = TrustedCoordinator::new(&plan).unwrap().unwrap();
            let mut model = Parameters::new(vec![0.0; n]);
            let mut bounds = Vec::new();
            for round in 1..=60 {
                let run: RunId = "sample-1".parse().unwrap();
                trusted.draw(&run, round, &present, NoiseMode::Seeded, 1).unwrap();
                model = trusted.step(&step, &model, &deltas).unwrap().0;
                bounds.push(trusted.clip_norm_l2);
            }
            let late = &bounds[40..];
            let mean = late.iter().sum::<f64>() / late.len() as f64;
            assert!((mean - expected).abs() < 0.08, "from {start}: {mean} {bounds:?}");
        }
    }

    /// However the vector is split, one institution moves the sum by no more than 1.
    #[test]
    fn an_adaptive_vector_has_at_most_norm_one() {
        for s in [0.01, 0.3, 0.99] {
            let adaptive = Adaptive { quantile: 0.5, learning_rate: 0.2, s };
            for norm in [0.0_f64, 0.3, 1.0, 50.0] {
                let scaled = adaptive.r() * norm.min(1.0);
                assert!(scaled.hypot(s) <= 1.0 + 1e-12);
            }
            assert!((adaptive.follow(2.0, 0.0) - 2.0).abs() < 1e-12);
            assert!(adaptive.follow(2.0, s) < 2.0 && adaptive.follow(2.0, -s) > 2.0);
        }
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
