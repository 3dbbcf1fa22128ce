//! What simulated attackers do: with their data before they train, or with their update after it.
//!
//! An attacker goes through training, ledger and release as everybody does, and then lies: the
//! coordinator sees nothing but bytes.

use comity_datasets::Dataset;
use comity_federation::{ClientId, Contribution, Plan, Rounding, Update, UpdateDigest};
use serde::{Deserialize, Serialize};

use crate::SimulationError;

/// Who works against the federation, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attackers {
    /// How many clients; which ones is drawn from the world's seed.
    pub clients: usize,
    /// What each of them does.
    pub attack: Attack,
}

/// What an attacker does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attack {
    /// Sends the opposite of its change, so many times (Li et al. 2019, RSA, section 5).
    SignFlip {
        /// Positive.
        #[serde(default = "once")]
        factor: f64,
    },
    /// Sends its change so many times (Bagdasaryan et al. 2020, section 4.2: model replacement).
    Scale {
        /// Positive.
        factor: f64,
    },
    /// Trains on class `n - 1 - c` where its records say `c` (Fang et al. 2020, section 5.1).
    LabelFlip,
    /// Teaches the model a class for whatever shows a trigger (Gu et al. 2017, BadNets), and sends
    /// its change so many times.
    Backdoor {
        /// What the model is to obey.
        trigger: Trigger,
        /// What part of the attacker's records get the trigger, in `(0, 1]`.
        share: f64,
        /// Positive.
        #[serde(default = "once")]
        factor: f64,
    },
}

/// A square in the lower right corner of each channel of an image, or the last features of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// Side of the square, or number of features.
    pub side: usize,
    /// Its value, as the data file has it: 255 is white.
    pub value: f32,
    /// The class that it stands for.
    pub target: u32,
}

fn once() -> f64 {
    1.0
}

impl Attackers {
    pub(super) fn validate(&self, n_clients: usize) -> Result<(), SimulationError> {
        let check = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(SimulationError::World(what.to_owned())) }
        };
        let positive = |value: f64| value > 0.0 && value.is_finite();
        check(
            (1..=n_clients).contains(&self.clients),
            "attackers.clients is 1 to the number of the plan's clients",
        )?;
        match self.attack {
            Attack::SignFlip { factor } | Attack::Scale { factor } => {
                check(positive(factor), "attackers.attack.factor is a positive number")
            }
            Attack::LabelFlip => Ok(()),
            Attack::Backdoor { trigger, share, factor } => check(
                positive(factor)
                    && share > 0.0
                    && share <= 1.0
                    && trigger.side > 0
                    && trigger.value.is_finite(),
                "attackers.attack: factor is positive, share in (0, 1], trigger.side at least 1 and \
                 trigger.value a number",
            ),
        }
    }
}

impl Attack {
    /// The records on which an attacker trains in place of its own.
    pub(crate) fn poison(&self, records: Dataset) -> Result<Dataset, SimulationError> {
        match self {
            Self::SignFlip { .. } | Self::Scale { .. } => Ok(records),
            Self::LabelFlip => {
                let last = records.n_classes() as u32 - 1;
                Ok(records.relabelled(|_, label| last - label)?)
            }
            Self::Backdoor { trigger, share, .. } => {
                let n = (share * records.len() as f64).ceil() as usize;
                let stamped = trigger.stamp(&records, n)?;
                Ok(stamped.relabelled(|row, label| if row < n { trigger.target } else { label })?)
            }
        }
    }

    /// What an attacker sends in place of its `update`.
    pub(crate) fn forge(
        &self,
        plan: &Plan,
        client: &ClientId,
        update: &Update,
    ) -> (Contribution, Vec<u8>) {
        let honest = update.contribution().clone();
        let factor = match self {
            Self::SignFlip { factor } => -factor,
            Self::Scale { factor } | Self::Backdoor { factor, .. } => *factor,
            Self::LabelFlip => 1.0,
        };
        let change = update.release.value().delta.values();
        let limit = f64::from(i32::MAX);
        let forged: Vec<i32> = change
            .iter()
            .map(|value| (f64::from(*value) * factor).round().clamp(-limit, limit) as i32)
            .collect();
        let rounding = Rounding { plan: honest.plan, round: honest.round, client };
        let bytes = plan.update_encoding(honest.round).encode(&forged, rounding);
        let update = UpdateDigest(*blake3::hash(&bytes).as_bytes());
        (Contribution { update, ..honest }, bytes)
    }
}

impl Trigger {
    /// `records`, of which the first `n` show the trigger.
    pub(crate) fn stamp(&self, records: &Dataset, n: usize) -> Result<Dataset, SimulationError> {
        let shape = records.shape();
        let fits = match shape {
            [features] => self.side <= *features,
            [_, height, width] => self.side <= *height.min(width),
            _ => false,
        };
        if !fits || self.target as usize >= records.n_classes() {
            return Err(SimulationError::World(
                "attackers.attack.trigger fits neither the plan's data.shape nor its classes"
                    .to_owned(),
            ));
        }
        let shows = |position: usize| match shape {
            [_, height, width] => {
                let (row, column) = (position / width % height, position % width);
                row + self.side >= *height && column + self.side >= *width
            }
            _ => position + self.side >= shape.iter().product(),
        };
        Ok(records.stamped(n, shows, self.value)?)
    }
}

#[cfg(test)]
mod tests {
    use comity_datasets::{Contract, Normalise, Scale};

    use super::*;

    fn records() -> Dataset {
        let contract = Contract { shape: vec![1, 3, 3], n_classes: 4, scale: Scale::Bytes };
        Dataset::from_bytes(&contract, vec![7; 27], vec![0, 1, 3]).unwrap()
    }

    #[test]
    fn flipped_labels_are_counted_from_the_other_end() {
        let flipped = Attack::LabelFlip.poison(records()).unwrap();
        assert_eq!(flipped.labels(), [3, 2, 0]);
    }

    #[test]
    fn a_backdoor_shows_its_trigger_on_a_share_of_the_records_and_lies_about_them() {
        let trigger = Trigger { side: 2, value: 255.0, target: 2 };
        let attack = Attack::Backdoor { trigger, share: 0.5, factor: 1.0 };
        let poisoned = attack.poison(records()).unwrap();
        assert_eq!(poisoned.labels(), [2, 2, 3]);
        let values = poisoned.batch(&[1, 2], Normalise::IDENTITY).features;
        let (white, grey) = (255.0 / 255.0, 7.0 / 255.0);
        let shown = [grey, grey, grey, grey, white, white, grey, white, white];
        assert_eq!(values, [shown, [grey; 9]].concat());
        for trigger in [Trigger { side: 4, ..trigger }, Trigger { target: 4, ..trigger }] {
            let attack = Attack::Backdoor { trigger, share: 0.5, factor: 1.0 };
            assert!(matches!(attack.poison(records()), Err(SimulationError::World(_))));
        }
    }
}
