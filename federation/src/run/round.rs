//! One round: whom it asks, when it closes, and what becomes of those who did not answer.

use std::collections::BTreeSet;

use super::{Answer, Answers, Asked, Effect, LATE_STILL_TRAINING, Outcome, Phase, Run};
use crate::plan::millionths;
use crate::strategy::fednova;
use crate::{
    ClientId, ContributionReport, Country, ModelDigest, Rejection, RoundReport, Strategy, Time,
    UpdateDigest, weights,
};

impl Run {
    /// Opens the next round.
    pub(super) fn open_round(&mut self, now: Time) -> Vec<Effect> {
        if let Some(lacking) = self.lacking(self.available()) {
            return self
                .end(Outcome::Aborted(format!("too few clients are left: {lacking}")), now)
                .split_off(1);
        }
        self.open_record(now);
        if self.plan.draws_in_secret() {
            self.phase = Phase::Drawing;
            let present = self.available().cloned().collect();
            return vec![Effect::Draw { round: self.last_round(), present }];
        }
        // Whose late update waits for this round has its place in it.
        let busy = |c: &ClientId| self.asked.contains_key(c) || self.carried.contains_key(c);
        let idle = self.available().filter(|client| !busy(client)).cloned();
        let cohort = self.sampled(idle.collect());
        self.invite(cohort, now)
    }

    pub(super) fn open_record(&mut self, now: Time) {
        let round = self.plan.first_round() + self.history.len() as u32;
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
    }

    /// Those of `idle` whom the open round asks, in the order of their ids.
    ///
    /// Ranks are hashes of seed, round and id: everybody can compute them, and no clock or generator is
    /// needed.  More are taken than the plan says where a quorum takes more.
    fn sampled(&self, idle: Vec<ClientId>) -> Vec<ClientId> {
        let round = self.last_round();
        let Some(sample) = self.plan.cohort.sample.filter(|_| round > 0) else { return idle };
        let n = (sample.clients + sample.over_selection) as usize;
        let mut ranked: Vec<([u8; 32], ClientId)> = idle
            .into_iter()
            .map(|client| {
                let mut hasher = blake3::Hasher::new_derive_key("comity cohort v1");
                hasher.update(&self.plan.seed.to_le_bytes()).update(&round.to_le_bytes());
                hasher.update(client.to_string().as_bytes());
                (*hasher.finalize().as_bytes(), client)
            })
            .collect();
        ranked.sort_unstable();
        let mut chosen: BTreeSet<ClientId> = BTreeSet::new();
        for (_, client) in ranked {
            if chosen.len() >= n && self.lacking(chosen.iter()).is_none() {
                break;
            }
            chosen.insert(client);
        }
        chosen.into_iter().collect()
    }

    /// The cohort of a round is known: the round trains, or has nobody to wait for.
    pub(super) fn drawn(
        &mut self,
        round: u32,
        cohort: Vec<ClientId>,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        let everybody: BTreeSet<&ClientId> = cohort.iter().collect();
        let fits = self.phase == Phase::Drawing
            && round == self.last_round()
            && everybody.len() == cohort.len()
            && everybody.iter().all(|client| self.available().any(|present| present == *client));
        if !fits {
            return Err(Rejection::OutOfPlace("no such cohort is waited for"));
        }
        let mut effects = vec![Effect::Record];
        effects.extend(self.invite(cohort, now));
        Ok(effects)
    }

    /// Opens the last round's training to `cohort`, and to those who were asked before.
    fn invite(&mut self, cohort: Vec<ClientId>, now: Time) -> Vec<Effect> {
        let closes = now.after(self.plan.cohort.round_deadline);
        let (round, base) = (self.last_round(), self.model);
        let answers = std::mem::take(&mut self.carried);
        self.asked.extend(cohort.iter().map(|client| (client.clone(), Asked { round, base })));
        let mut all: Vec<ClientId> = self.asked.keys().chain(answers.keys()).cloned().collect();
        all.sort_unstable();
        self.history.last_mut().expect("a round is open").cohort = all;
        self.phase = Phase::Training { answers, closes };
        let mut effects = Vec::new();
        if !cohort.is_empty() {
            effects.push(Effect::Invite { round, cohort, model: base, closes });
        }
        effects.extend(self.answered(now, false).split_off(1));
        effects
    }

    /// Closes the round when nothing more is to be waited for or, at the deadline, with a quorum.
    pub(super) fn answered(&mut self, now: Time, at_deadline: bool) -> Vec<Effect> {
        let mut effects = vec![Effect::Record];
        let open = self.last_round();
        let Phase::Training { answers, .. } = &self.phase else {
            return effects;
        };
        let wanted = self.plan.contributions_wanted().filter(|_| open > 0);
        let enough = wanted.is_some_and(|n| answers.n_contributions() >= n as usize);
        let outstanding = || self.asked.iter().filter(|(client, _)| !answers.contains_key(*client));
        let waits_for_open = outstanding().any(|(_, asked)| asked.round == open);
        // Before the quorum is looked at, which takes a look at every client: this is most contributions.
        if !at_deadline && waits_for_open && !enough {
            return effects;
        }
        let lacking =
            if self.plan.draws_in_secret() { None } else { self.lacking(answers.contributors()) };
        let waits = waits_for_open
            // Who was asked earlier is waited for where the round cannot close without.
            || (lacking.is_some() || matches!(self.plan.aggregation.strategy, Strategy::Fedbuff { .. }))
                && outstanding().next().is_some();
        if !at_deadline && waits && !(enough && lacking.is_none()) {
            return effects;
        }
        let mut answers = answers.clone();
        for (client, asked) in self.asked.clone() {
            if answers.contains_key(&client) {
                self.asked.remove(&client);
                continue;
            }
            let reason = if self.takes_stale_at(open + 1, asked.round) {
                LATE_STILL_TRAINING
            } else {
                self.asked.remove(&client);
                if at_deadline || lacking.is_some() {
                    "late: nothing arrived by the deadline"
                } else {
                    "late: the round had enough contributions before"
                }
            };
            answers.insert(client, Answer::Missing { reason: reason.to_owned(), is_final: false });
        }
        self.record_answers(answers);
        if let Some(lacking) = lacking {
            let why = format!("round {open} closed without a quorum: {lacking}");
            return self.end(Outcome::Aborted(why), now);
        }
        self.phase = Phase::Aggregating;
        effects.extend(self.pending());
        effects
    }

    /// Writes into the last round's record who contributed and who did not.
    pub(super) fn record_answers(&mut self, answers: Answers) {
        let record = self.history.last_mut().expect("a round is open");
        let asked: BTreeSet<ClientId> = record.cohort.iter().cloned().collect();
        for (client, answer) in answers {
            if !asked.contains(&client) {
                record.cohort.push(client.clone());
            }
            match answer {
                Answer::Contributed(contribution) => record.contributions.push(contribution),
                Answer::Missing { reason, .. } => record.missing.push((client, reason)),
            }
        }
    }

    pub(super) fn aggregated(
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

    /// The contributions of the last round with the weights with which they count, and the factor on the
    /// server's learning rate that goes with them.
    pub(super) fn weighted(
        &self,
        contributions: &[ContributionReport],
    ) -> (Vec<(UpdateDigest, u64)>, f64) {
        let updates = contributions.iter().map(|c| c.update);
        let mut weights: Vec<u64> = contributions.iter().map(|c| c.weight).collect();
        if self.last_round() == 0 {
            // Statistics are sums: everybody's count once.
            return (updates.zip(weights).collect(), 1.0);
        }
        if let Strategy::Fedbuff { .. } = self.plan.aggregation.strategy {
            let ages: Vec<u32> = contributions.iter().map(|c| c.staleness).collect();
            weights = weights::aged(&weights, &ages);
        }
        if let Some(share) = self.plan.aggregation.country_weight_max {
            let by_country: Vec<(Country, u64)> =
                contributions.iter().map(|c| c.client.country()).zip(weights).collect();
            weights = weights::capped(&by_country, millionths(share));
        }
        let mut gain = 1.0;
        if let Strategy::Fednova { .. } = self.plan.aggregation.strategy {
            let n_steps = |c: &ContributionReport| {
                self.plan.steps_per_round(&self.plan.cohort.clients[self.positions[&c.client]])
            };
            let counted: Vec<(u64, u32)> =
                weights.iter().copied().zip(contributions.iter().map(n_steps)).collect();
            (weights, gain) = fednova::normalised(&self.plan, &counted);
        }
        (updates.zip(weights).collect(), gain)
    }

    /// What `clients` lack for a quorum, in words; `None` if they are enough.
    pub(super) fn lacking<'a>(
        &self,
        clients: impl Iterator<Item = &'a ClientId>,
    ) -> Option<String> {
        let clients: BTreeSet<&ClientId> = clients.collect();
        let countries: BTreeSet<Country> = clients.iter().map(|c| c.country()).collect();
        let cohort = &self.plan.cohort;
        let (min_clients, min_countries) =
            (cohort.min_clients as usize, cohort.min_countries as usize);
        let share = cohort.min_weight_share.map(|min| {
            let weight = |all: bool| -> u128 {
                let counted = cohort.clients.iter().filter(|c| all || clients.contains(&c.id));
                counted.map(|c| u128::from(cohort.weight(c))).sum()
            };
            let (have, of) = (weight(false), weight(true));
            let enough = have * 1_000_000 >= of * u128::from(millionths(min));
            (enough, format!(", {:.4} of at least {min} of the weight", have as f64 / of as f64))
        });
        if clients.len() >= min_clients
            && countries.len() >= min_countries
            && share.as_ref().is_none_or(|(enough, _)| *enough)
        {
            return None;
        }
        let absent: Vec<String> = cohort
            .clients
            .iter()
            .filter(|named| !clients.contains(&named.id))
            .map(|named| match (self.excluded.get(&named.id), self.declined.get(&named.id)) {
                (Some(reason), _) => format!("{} (excluded: {reason})", named.id),
                (_, Some(reason)) => format!("{} (declined: {reason})", named.id),
                _ => named.id.to_string(),
            })
            .collect();
        Some(format!(
            "{} of at least {min_clients} clients, {} of at least {min_countries} countries{}; without {}",
            clients.len(),
            countries.len(),
            share.map(|(_, text)| text).unwrap_or_default(),
            absent.join(", ")
        ))
    }

    /// The open round, or the last one; 0 before the first.
    pub(super) fn last_round(&self) -> u32 {
        match self.history.len() as u32 {
            0 => 0,
            n_rounds => self.plan.first_round() + n_rounds - 1,
        }
    }
}
