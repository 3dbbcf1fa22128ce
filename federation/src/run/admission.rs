//! Which updates are wanted: asked before their bytes are taken, and again when they have arrived.

use super::{Admission, Answer, Effect, Phase, Run, cut};
use crate::{ClientId, Contribution, ContributionReport, Rejection, Time};

impl Run {
    pub(super) fn submit(
        &mut self,
        client: ClientId,
        contribution: Contribution,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        if self.admit(&client, &contribution)? == Admission::AlreadyHere {
            return Ok(Vec::new());
        }
        let named = self.named(&client)?;
        // Statistics are sums, not means: everybody's count once.
        let weight = if contribution.round == 0 { 1 } else { self.plan.weight(named) };
        let counts_in = self.counts_in();
        let report = ContributionReport {
            weight,
            bytes: contribution.delta_bytes(),
            update: contribution.update,
            n_correct: contribution.n_correct,
            loss_sum: contribution.loss_sum,
            at: now,
            client: client.clone(),
            staleness: counts_in - contribution.round,
        };
        self.asked.remove(&client);
        let answer = Answer::Contributed(report);
        if let Phase::Training { answers, .. } = &mut self.phase {
            answers.insert(client, answer);
            return Ok(self.answered(now, false));
        }
        self.carried.insert(client, answer);
        Ok(vec![Effect::Record])
    }

    /// The round in which an update counts that arrives now.
    fn counts_in(&self) -> u32 {
        self.last_round() + u32::from(self.phase == Phase::Aggregating)
    }

    /// Whether the update that `client` offers would be accepted: asked before its bytes are
    /// taken, and again when they have arrived.
    ///
    /// # Errors
    /// [`Rejection`] if it would not be.
    pub fn admit(
        &self,
        client: &ClientId,
        contribution: &Contribution,
    ) -> Result<Admission, Rejection> {
        self.named(client)?;
        self.same_plan(contribution.plan)?;
        if self.is_here(client, contribution) {
            return Ok(Admission::AlreadyHere);
        }
        self.not_excluded(client)?;
        let open = self.last_round();
        let not_open = Rejection::RoundNotOpen { got: contribution.round, open };
        let answers = match &self.phase {
            Phase::Training { answers, .. } => answers,
            Phase::Aggregating if self.takes_stale_at(self.counts_in(), contribution.round) => {
                &self.carried
            }
            Phase::Ended { outcome, .. } => return Err(outcome.rejection()),
            _ => return Err(not_open),
        };
        let asked = self.asked.get(client).filter(|asked| asked.round == contribution.round);
        let Some(asked) = asked else {
            return Err(match answers.get(client) {
                _ if contribution.round != open => not_open,
                Some(Answer::Contributed(_)) => Rejection::AlreadyContributed(client.clone()),
                Some(Answer::Missing { reason, .. }) => {
                    Rejection::Refused { client: client.clone(), reason: reason.clone() }
                }
                None => Rejection::NotInvited { client: client.clone(), round: open },
            });
        };
        if let Some(Answer::Missing { reason, is_final: true }) = answers.get(client) {
            return Err(Rejection::Refused { client: client.clone(), reason: reason.clone() });
        }
        if contribution.base != asked.base {
            return Err(Rejection::OtherBase { expected: asked.base, got: contribution.base });
        }
        let expected = match self.plan.analytics_request() {
            Some(request) if contribution.round == 0 => request.n_values(),
            _ => self.n_parameters,
        };
        if contribution.n_parameters != expected {
            return Err(Rejection::WrongSize { expected, got: contribution.n_parameters });
        }
        let encoding = self.plan.update_encoding(contribution.round);
        if contribution.encoding != encoding {
            return Err(Rejection::OtherEncoding {
                expected: encoding,
                got: contribution.encoding,
            });
        }
        let is_copy = answers.has_update(contribution.update);
        // Where institutions are protected nobody is refused for what others sent; and two trainings can
        // end alike where both change nothing.
        if is_copy && !self.plan.draws_in_secret() && !is_zero(contribution) {
            return Err(Rejection::Copied);
        }
        Ok(Admission::Wanted)
    }

    /// The same update again, after a lost reply, is a success, even when its round is over.
    fn is_here(&self, client: &ClientId, contribution: &Contribution) -> bool {
        let Some(first) = contribution.round.checked_sub(self.plan.first_round()) else {
            return false;
        };
        let answers = match &self.phase {
            Phase::Training { answers, .. } => answers,
            _ => &self.carried,
        };
        let update = contribution.update;
        let mut later = self.history.iter().skip(first as usize);
        matches!(answers.get(client), Some(Answer::Contributed(c)) if c.update == update)
            || later.any(|round| round.counts(client, update))
    }

    /// A client that was asked will not contribute (it says so, or what it sent was refused).
    pub(super) fn nothing_comes(
        &mut self,
        client: ClientId,
        round: u32,
        reason: String,
        is_final: bool,
        now: Time,
    ) -> Result<Vec<Effect>, Rejection> {
        self.named(&client)?;
        let open = self.last_round();
        let asked = self.asked.get(&client).is_some_and(|asked| asked.round == round);
        let Phase::Training { answers, .. } = &mut self.phase else {
            if asked && self.phase == Phase::Aggregating {
                self.asked.remove(&client);
                return Ok(vec![Effect::Record]);
            }
            return Err(Rejection::RoundNotOpen { got: round, open });
        };
        match answers.get(&client) {
            _ if !asked && round != open => Err(Rejection::RoundNotOpen { got: round, open }),
            Some(Answer::Contributed(_)) => Err(Rejection::AlreadyContributed(client)),
            Some(Answer::Missing { is_final: known, .. }) if *known || !is_final => Ok(Vec::new()),
            _ if !asked => Err(Rejection::NotInvited { client, round }),
            _ => {
                answers.insert(client, Answer::Missing { reason: cut(reason), is_final });
                Ok(self.answered(now, false))
            }
        }
    }

    /// Whether something was asked of `client` that it has not answered.
    pub(super) fn is_asked(&self, client: &ClientId) -> bool {
        let answered = match &self.phase {
            Phase::Training { answers, .. } => answers.contains_key(client),
            _ => false,
        };
        !answered && self.asked.contains_key(client)
    }

    /// Whether an update that was trained for `asked` may count in `round`.
    pub(super) fn takes_stale_at(&self, round: u32, asked: u32) -> bool {
        // Statistics are of one round only.
        asked > 0 && round <= self.plan.rounds && asked + self.plan.staleness_max() >= round
    }
}

/// Whether the delta is nothing but zeros, by its digest.
fn is_zero(contribution: &Contribution) -> bool {
    const ZEROS: [u8; 1 << 14] = [0; 1 << 14];
    let mut hasher = blake3::Hasher::new();
    let mut left = contribution.delta_bytes();
    while left > 0 {
        let n = left.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..n as usize]);
        left -= n;
    }
    *hasher.finalize().as_bytes() == contribution.update.0
}
