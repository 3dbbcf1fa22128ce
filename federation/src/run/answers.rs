//! What the clients of a round have answered, and how many contributed what: asked for each message, so
//! that it must not take a look at everybody.

use std::collections::BTreeMap;
use std::ops::Deref;

use crate::{ClientId, ContributionReport, UpdateDigest};

/// What a client that was asked has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Contributed(ContributionReport),
    /// Nothing will come, or what came was not accepted; it may think better of the former.
    Missing {
        reason: String,
        is_final: bool,
    },
}

/// The answers of a round, by client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    by_client: BTreeMap<ClientId, Answer>,
    /// How many contributed each update.
    updates: BTreeMap<UpdateDigest, usize>,
    n_contributions: usize,
}

impl Answers {
    /// Takes an answer in place of the client's last one.
    pub(super) fn insert(&mut self, client: ClientId, answer: Answer) {
        if let Answer::Contributed(report) = &answer {
            *self.updates.entry(report.update).or_default() += 1;
            self.n_contributions += 1;
        }
        if let Some(Answer::Contributed(report)) = self.by_client.insert(client, answer) {
            self.n_contributions -= 1;
            if let Some(n) = self.updates.get_mut(&report.update) {
                *n -= 1;
            }
        }
    }

    /// Whether somebody contributed this update.
    pub(super) fn has_update(&self, update: UpdateDigest) -> bool {
        self.updates.get(&update).is_some_and(|n| *n > 0)
    }

    /// How many contributed.
    pub(super) fn n_contributions(&self) -> usize {
        self.n_contributions
    }

    /// Who contributed, in the order of their ids.
    pub(super) fn contributors(&self) -> impl Iterator<Item = &ClientId> {
        let contributed =
            self.by_client.iter().filter(|(_, a)| matches!(a, Answer::Contributed(_)));
        contributed.map(|(client, _)| client)
    }
}

impl Deref for Answers {
    type Target = BTreeMap<ClientId, Answer>;

    fn deref(&self) -> &Self::Target {
        &self.by_client
    }
}

impl IntoIterator for Answers {
    type Item = (ClientId, Answer);
    type IntoIter = std::collections::btree_map::IntoIter<ClientId, Answer>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_client.into_iter()
    }
}
