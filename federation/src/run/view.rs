//! A run as it is seen from outside.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Answers, Effect, Outcome, Phase, Run};
use crate::{
    ClientId, ClientReport, ClientStanding, ContributionReport, ModelDigest, Plan, PlanDigest,
    Receipt, RoundReport, RunId, RunReport, RunStatus, Task, UpdateDigest,
};

impl Run {
    /// Which run this is.
    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan's digest.
    #[must_use]
    pub fn plan_digest(&self) -> PlanDigest {
        self.plan_digest
    }

    /// The latest model.
    #[must_use]
    pub fn model(&self) -> ModelDigest {
        self.model
    }

    /// How the run ended, if it did.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Ended { outcome, .. } => Some(outcome),
            _ => None,
        }
    }

    /// Whether nothing has to be asked of `client` about the plan: it agreed, declined, or was excluded.
    #[must_use]
    pub fn has_answered(&self, client: &ClientId) -> bool {
        self.present.contains(client)
            || self.declined.contains_key(client)
            || self.excluded.contains_key(client)
    }

    /// What `client` is to train, now that a round is open; of an earlier round, where its late update is
    /// still wanted.
    #[must_use]
    pub fn task(&self, client: &ClientId) -> Option<Task> {
        let Phase::Training { closes, .. } = &self.phase else { return None };
        let asked = self.asked.get(client).filter(|_| self.is_asked(client))?;
        Some(Task {
            run: self.id.clone(),
            round: asked.round,
            plan: self.plan_digest,
            model: asked.base,
            closes: *closes,
        })
    }

    /// The models from which somebody may still train or fold, and the updates that are to be folded.
    #[must_use]
    pub fn blobs_needed(&self) -> (BTreeSet<ModelDigest>, BTreeSet<UpdateDigest>) {
        let models = self.asked.values().map(|asked| asked.base).chain([self.model]).collect();
        let (answers, record) = match &self.phase {
            Phase::Training { answers, .. } => (answers, None),
            Phase::Aggregating => (&self.carried, self.history.last()),
            _ => (&self.carried, None),
        };
        let arrived = answers.values().filter_map(|answer| match answer {
            Answer::Contributed(contribution) => Some(contribution.update),
            Answer::Missing { .. } => None,
        });
        let folding = record.into_iter().flat_map(|r| &r.contributions).map(|c| c.update);
        (models, arrived.chain(folding).collect())
    }

    /// The effect that the driver must perform again after a restart: the last one whose answer
    /// has not come.
    #[must_use]
    pub fn pending(&self) -> Option<Effect> {
        let record = self.history.last();
        match (&self.phase, record) {
            (Phase::Training { closes, .. }, Some(record)) => Some(Effect::Invite {
                round: record.round,
                cohort: self
                    .asked
                    .iter()
                    .filter(|(client, asked)| asked.round == record.round && self.is_asked(client))
                    .map(|(client, _)| client.clone())
                    .collect(),
                model: self.model,
                closes: *closes,
            }),
            (Phase::Drawing, Some(record)) => Some(Effect::Draw {
                round: record.round,
                present: self.available().cloned().collect(),
            }),
            (Phase::Aggregating, Some(record)) => {
                let (updates, gain) = self.weighted(&record.contributions);
                let (round, base) = (record.round, self.model);
                Some(Effect::Aggregate { round, base, updates, gain })
            }
            _ => None,
        }
    }

    /// Whether `client` agreed to the plan: it is shown the run's records, also while it is excluded.
    #[must_use]
    pub fn is_member(&self, client: &ClientId) -> bool {
        self.present.contains(client)
    }

    /// The receipt for the accepted update of `client` with this digest, if there is one.
    #[must_use]
    pub fn receipt(
        &self,
        federation: &str,
        client: &ClientId,
        update: UpdateDigest,
    ) -> Option<Receipt> {
        let is_it = |c: &&ContributionReport| c.client == *client && c.update == update;
        let waiting = match &self.phase {
            Phase::Training { answers, .. } => answers.get(client).map(|a| (a, self.last_round())),
            _ => self.carried.get(client).map(|a| (a, self.last_round() + 1)),
        };
        let waiting = waiting.and_then(|(answer, counts_in)| match answer {
            Answer::Contributed(report) => Some((report, counts_in)),
            Answer::Missing { .. } => None,
        });
        let (report, counts_in) = waiting.filter(|(report, _)| is_it(report)).or_else(|| {
            let rounds = self.history.iter().rev();
            let mut counted =
                rounds.flat_map(|round| round.contributions.iter().map(|c| (c, round.round)));
            counted.find(|(report, _)| is_it(report))
        })?;
        Some(report.receipt(federation, &self.id, self.plan_digest, counts_in))
    }

    /// What the run looks like from outside.
    #[must_use]
    pub fn report(&self) -> RunReport {
        RunReport { history: self.rounds_from(0), ..self.summary() }
    }

    /// How many rounds were opened so far.
    #[must_use]
    pub fn n_rounds(&self) -> usize {
        self.history.len()
    }

    /// The rounds after the first `n_skipped`, oldest first; the open one with what has arrived.
    #[must_use]
    pub fn rounds_from(&self, n_skipped: usize) -> Vec<RoundReport> {
        let mut rounds = self.history.get(n_skipped..).unwrap_or_default().to_vec();
        if let (Phase::Training { answers, .. }, Some(open)) = (&self.phase, rounds.last_mut()) {
            for (client, answer) in answers.iter() {
                match answer {
                    Answer::Contributed(c) => open.contributions.push(c.clone()),
                    Answer::Missing { reason, .. } => {
                        open.missing.push((client.clone(), reason.clone()));
                    }
                }
            }
        }
        rounds
    }

    /// [`report`](Self::report) without its rounds: its cost does not grow with them.
    #[must_use]
    pub fn summary(&self) -> RunReport {
        let (status, reason, ended) = match &self.phase {
            Phase::Gathering { .. } => (RunStatus::Gathering, None, None),
            Phase::Drawing | Phase::Training { .. } => (RunStatus::Training, None, None),
            Phase::Aggregating => (RunStatus::Aggregating, None, None),
            Phase::Ended { outcome: Outcome::Finished(_), at } => {
                (RunStatus::Finished, None, Some(*at))
            }
            Phase::Ended { outcome: Outcome::Aborted(reason), at } => {
                (RunStatus::Aborted, Some(reason.clone()), Some(*at))
            }
        };
        RunReport {
            run: self.id.clone(),
            name: self.plan.name.clone(),
            plan: self.plan_digest,
            status,
            reason,
            round: self.last_round(),
            rounds: self.plan.rounds,
            started: self.started,
            ended,
            model: self.model,
            clients: self.clients(),
            history: Vec::new(),
            statistics: self
                .statistics
                .as_ref()
                .map(|sums| self.plan.estimates(sums).expect("they were checked when they came")),
        }
    }

    fn clients(&self) -> Vec<ClientReport> {
        use ClientStanding as Is;
        let no_answers = Answers::default();
        let answers = match &self.phase {
            Phase::Training { answers, .. } => answers,
            _ => &no_answers,
        };
        // Who missed the round that was closed last, and was asked for nothing since.
        let late: BTreeMap<&ClientId, &String> = self
            .history
            .iter()
            .rev()
            .find(|round| !round.contributions.is_empty() || !round.missing.is_empty())
            .into_iter()
            .flat_map(|round| &round.missing)
            .filter(|(_, reason)| reason.starts_with("late"))
            .map(|(client, reason)| (client, reason))
            .collect();
        let standing = |client: &ClientId| -> (ClientStanding, Option<&String>) {
            if let Some(reason) = self.excluded.get(client) {
                return (Is::Excluded, Some(reason));
            }
            if let Some(reason) = self.declined.get(client) {
                return (Is::Declined, Some(reason));
            }
            match (answers.get(client), self.asked.get(client)) {
                (Some(Answer::Contributed(_)), _) => (Is::Contributed, None),
                (Some(Answer::Missing { reason, .. }), _) => (Is::Configured, Some(reason)),
                (None, Some(asked)) if asked.round < self.last_round() => (Is::Late, None),
                (None, Some(_)) if matches!(self.phase, Phase::Training { .. }) => {
                    (Is::Training, None)
                }
                (None, _) if !self.present.contains(client) => (Is::Registered, None),
                (None, _) => match late.get(client) {
                    Some(reason) => (Is::Late, Some(reason)),
                    None => (Is::Configured, None),
                },
            }
        };
        let named = self.plan.cohort.clients.iter();
        named
            .map(|named| {
                let (standing, note) = standing(&named.id);
                ClientReport {
                    client: named.id.clone(),
                    standing,
                    note: note.cloned(),
                    connected: None,
                }
            })
            .collect()
    }
}
