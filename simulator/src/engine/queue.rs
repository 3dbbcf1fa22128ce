//! What is under way in the simulated world, in the order in which it arrives.

use std::collections::BTreeMap;

use comity_federation::{Event, ParticipantEvent, Task, Time};
use serde::{Deserialize, Serialize};

/// When something arrives; of what arrives at one instant, the first sent comes first.
pub(super) type Moment = (Time, u64);

/// Something that arrives.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// A client says something.
    ToCoordinator(Event),
    /// The coordinator says something to the client at this place in the plan.
    ToClient(usize, ParticipantEvent),
    /// That client, which had died, is there again.
    Restarted(usize),
}

/// A training that ends at its moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Training {
    /// The client's place in the plan.
    pub(super) client: usize,
    pub(super) task: Task,
}

/// What arrives next.
pub(super) enum Next {
    Message(Message),
    Trained(Moment, Training),
}

/// Messages and trainings by their moments.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Queue {
    n_sent: u64,
    #[serde(with = "pairs")]
    messages: BTreeMap<Moment, Message>,
    #[serde(with = "pairs")]
    trainings: BTreeMap<Moment, Training>,
    /// When each client's training ends.
    ends: BTreeMap<usize, Moment>,
}

impl Queue {
    pub(super) fn send(&mut self, at: Time, message: Message) {
        let moment = self.moment(at);
        self.messages.insert(moment, message);
    }

    /// A client begins to train, in place of what it may still be training; returns when that would
    /// have ended.
    pub(super) fn train(&mut self, ends: Time, training: Training) -> Option<Moment> {
        let moment = self.moment(ends);
        let given_up = self.ends.insert(training.client, moment);
        if let Some(given_up) = given_up {
            self.trainings.remove(&given_up);
        }
        self.trainings.insert(moment, training);
        given_up
    }

    fn moment(&mut self, at: Time) -> Moment {
        self.n_sent += 1;
        (at, self.n_sent)
    }

    /// When the next thing arrives.
    pub(super) fn next_at(&self) -> Option<Time> {
        let message = self.messages.first_key_value().map(|(moment, _)| *moment);
        let training = self.trainings.first_key_value().map(|(moment, _)| *moment);
        message.into_iter().chain(training).min().map(|(at, _)| at)
    }

    pub(super) fn pop(&mut self) -> Option<(Time, Next)> {
        let message = self.messages.first_key_value().map(|(moment, _)| *moment);
        let training = self.trainings.first_key_value().map(|(moment, _)| *moment);
        if training.is_some_and(|training| message.is_none_or(|message| training < message)) {
            let (moment, training) = self.trainings.pop_first()?;
            self.ends.remove(&training.client);
            return Some((moment.0, Next::Trained(moment, training)));
        }
        let ((at, _), message) = self.messages.pop_first()?;
        Some((at, Next::Message(message)))
    }

    /// The trainings that are under way, those that end first first.
    pub(super) fn trainings(&self) -> impl Iterator<Item = (Moment, &Training)> {
        self.trainings.iter().map(|(moment, training)| (*moment, training))
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.values()
    }
}

/// JSON has no maps with such keys.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Moment;

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        map: &BTreeMap<Moment, T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Moment, T>, D::Error> {
        Ok(Vec::<(Moment, T)>::deserialize(deserializer)?.into_iter().collect())
    }
}
