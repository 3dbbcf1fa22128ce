//! One institution: what `comity-client` keeps, in memory.

use std::num::NonZero;
use std::sync::Mutex;

use comity_burn_models::{LocalRound, local_round};
use comity_datasets::Dataset;
use comity_federation::{
    ClientId, ClientState, Contribution, Parameters, Participant, Task, Update,
};
use comity_privacy::{
    Charge, Ledger, LedgerEntry, LedgerStore, Mechanism, PrivacyError, PrivacyPlan, Randomness,
    Reservation, ReservationKey,
};

use super::Simulation;
use crate::SimulationError;
use crate::conduct::Attack;

/// What a client keeps from round to round.
pub(super) struct Client {
    pub(super) participant: Participant,
    pub(super) privacy: Option<PrivacyPlan>,
    pub(super) ledger: Ledger,
    /// ε so far, at the plan's δ; `None` without DP.
    pub(super) epsilon: Option<f64>,
    /// What its ledger writes.
    pub(super) entries: Entries,
    /// The round in which it died last.
    pub(super) died_in: Option<u32>,
}

/// The parts of a round that are the same for all clients.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) simulation: &'a Simulation<'a>,
    pub(super) reckoned: &'a Reckoned,
    /// Of the plan's budget; `None` without DP.
    pub(super) delta: Option<f64>,
}

/// What a client's training gave.
pub(super) struct Trained {
    pub(super) contribution: Contribution,
    /// What the contribution names.
    pub(super) bytes: Vec<u8>,
    /// What the client keeps of its own from now on.
    pub(super) state: Option<ClientState>,
}

/// ε of what was reckoned before: clients of one size have spent the same, and each reckoning is dear.
#[derive(Default)]
pub(super) struct Reckoned(Mutex<Vec<(Vec<Mechanism>, f64)>>);

/// Where a ledger's entries go.
pub(super) enum Entries {
    /// Nobody has to find them again.
    Forgotten,
    /// The next checkpoint takes them.
    Kept(Vec<LedgerEntry>),
}

impl LedgerStore for Entries {
    fn append(&mut self, entry: &LedgerEntry) -> Result<(), String> {
        if let Self::Kept(entries) = self {
            entries.push(entry.clone());
        }
        Ok(())
    }
}

impl Client {
    /// Debits the ledger, trains, releases, and commits: only then may the update leave.
    ///
    /// `records` are the client's own; an attacker trains on others, and sends something else.
    ///
    /// # Errors
    /// As at a real client: the round then goes on without it, and its record says why.
    #[expect(clippy::too_many_arguments, reason = "one call from one place")]
    pub(super) fn train(
        &mut self,
        work: Work<'_>,
        id: &ClientId,
        task: &Task,
        base: &Parameters,
        state: Option<&ClientState>,
        records: &Dataset,
        attack: Option<&Attack>,
        n_threads: NonZero<usize>,
        progress: &mut dyn FnMut(u32, u32),
    ) -> Result<Trained, SimulationError> {
        let Simulation { plan, device, .. } = *work.simulation;
        let (reservation, randomness) = self.debit(work.simulation, id, task)?;
        let round = LocalRound {
            plan,
            plan_digest: task.plan,
            round: task.round,
            client: id,
            base,
            dataset: records,
            device,
            n_threads,
        };
        let privacy = self.privacy.as_ref().zip(randomness);
        let trained = local_round(&round, state, privacy, reservation, progress)?;
        let update = Update::new(task, plan, id, trained.release);
        let digest = update.contribution().update.0;
        self.ledger
            .commit(&mut self.entries, update.release.receipt(), digest)
            .map_err(|source| SimulationError::Privacy { client: id.clone(), source })?;
        self.epsilon = work.delta.map(|delta| work.reckoned.epsilon(&self.ledger, delta));
        let (contribution, bytes) = match attack {
            Some(attack) => attack.forge(plan, id, &update),
            None => (update.contribution().clone(), update.delta_bytes().to_vec()),
        };
        Ok(Trained { contribution, bytes, state: trained.state })
    }

    /// Debits the round of `task`; a second time costs nothing.
    ///
    /// # Errors
    /// [`SimulationError::Privacy`] if the ledger refuses.
    pub(super) fn debit(
        &mut self,
        simulation: &Simulation<'_>,
        id: &ClientId,
        task: &Task,
    ) -> Result<(Reservation, Option<Randomness>), SimulationError> {
        let mut debit = || -> Result<_, PrivacyError> {
            let key = ReservationKey { run: task.run.to_string(), round: task.round };
            let (charge, randomness) = match &self.privacy {
                None => (Charge::exempt(task.plan.0), None),
                Some(privacy) => {
                    let randomness =
                        simulation.noise.randomness(simulation.seed, id, task.round)?;
                    let charge = match task.round {
                        0 => privacy.analytics_charge(&randomness)?,
                        _ => privacy.charge(&randomness),
                    };
                    (charge, Some(randomness))
                }
            };
            Ok((self.ledger.reserve(&mut self.entries, key, charge)?, randomness))
        };
        debit().map_err(|source| SimulationError::Privacy { client: id.clone(), source })
    }
}

impl Reckoned {
    fn epsilon(&self, ledger: &Ledger, delta: f64) -> f64 {
        let used: Vec<Mechanism> = ledger.runs().flat_map(|run| run.used.iter().copied()).collect();
        // Held while it is reckoned, so that two threads do not do it twice.
        let mut known = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, epsilon)) = known.iter().find(|(mechanisms, _)| *mechanisms == used) {
            return *epsilon;
        }
        let epsilon = ledger.spent_at(delta).epsilon;
        known.push((used, epsilon));
        epsilon
    }

    /// Forgets all but what a round needs.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    }
}
