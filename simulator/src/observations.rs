//! What a simulation shows of itself while it runs: a score a round, and each client's part in it.
//!
//! The engine hands these out and keeps only the scores; whoever wants a client's part keeps it
//! ([`Progress::Round`]), so that memory does not grow with rounds times clients.

use std::collections::BTreeMap;

use comity_federation::{ClientId, Country, ModelDigest};
use serde::{Deserialize, Serialize};

/// What happens during a simulation.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A client took a local step.
    Step {
        /// Counted from 1.
        round: u32,
        /// Who.
        client: &'a ClientId,
        /// Steps taken in this round.
        step: u32,
        /// Steps of the round.
        n_steps: u32,
    },
    /// The simulation goes on from a checkpoint; `rounds` are those that are done.
    Resumed {
        /// Their scores.
        rounds: &'a [RoundScore],
    },
    /// A round's model was aggregated and scored.
    Round {
        /// The round.
        score: &'a RoundScore,
        /// Everybody who was asked, in the order of their ids.
        clients: &'a [ClientRound],
    },
}

/// One round's model on the public test set, and what the round cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundScore {
    /// Counted from 1.
    pub round: u32,
    /// Share of the public test set that is classified correctly.
    pub accuracy: f64,
    /// Mean cross-entropy on the public test set, in nats.
    pub loss: f64,
    /// Share of the test examples of other classes that the model takes for the attackers' one where they
    /// show the attackers' trigger; `None` where nobody teaches it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backdoor: Option<f64>,
    /// Digest of the model.
    pub model: ModelDigest,
    /// Wall-clock time of the round with its scoring.
    pub seconds: f64,
    /// When the round closed, in seconds of the simulated world since the run began.
    pub clock_s: f64,
    /// How many updates counted.
    pub n_contributions: u32,
    /// How many of those who were asked contributed nothing.
    pub n_missing: u32,
    /// The largest ε so far of each country's clients, at the plan's δ, by their ledgers or, where whole
    /// institutions are protected, by the coordinator's; `None` without DP.
    pub epsilon: BTreeMap<Country, Option<f64>>,
    /// Bytes of the updates that arrived in this round, by country.
    pub bytes: BTreeMap<Country, u64>,
    /// How the model does at each client; `None` where the clients keep no records for it.
    pub fairness: Option<Fairness>,
}

/// How one model does on the records that each client keeps for testing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fairness {
    /// How many clients have such records.
    pub n_clients: u32,
    /// Mean of the clients' accuracies, each counted once.
    pub mean: f64,
    /// Their standard deviation, with `n - 1`; 0 for one client.
    pub std: f64,
    /// The lowest.
    pub min: f64,
    /// The value that a tenth of the clients is at or below.
    pub tenth: f64,
    /// The highest.
    pub max: f64,
}

/// One client's part in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRound {
    /// Counted from 1.
    pub round: u32,
    /// Who.
    pub client: ClientId,
    /// Why nothing of it counted; `None` where its update did.
    pub missing: Option<String>,
    /// How many rounds older than the round its update was.
    pub staleness: u32,
    /// Length of its update in bytes; 0 where none arrived.
    pub bytes: u64,
    /// Its ε so far, as in [`RoundScore::epsilon`].
    pub epsilon: Option<f64>,
    /// When its update arrived, in seconds of the simulated world since the run began.
    pub arrived_s: Option<f64>,
    /// Share of the records that it keeps for testing which the round's model, with the client's own
    /// layers where the plan has such, classifies correctly; `None` where it keeps none.
    pub accuracy: Option<f64>,
    /// Mean cross-entropy on them, in nats.
    pub loss: Option<f64>,
}

impl Fairness {
    /// Of `accuracies`, in any order; `None` if there are none.
    #[must_use]
    pub fn of(mut accuracies: Vec<f64>) -> Option<Self> {
        accuracies.sort_by(f64::total_cmp);
        let (min, max) = (*accuracies.first()?, *accuracies.last()?);
        let n = accuracies.len();
        let mean = accuracies.iter().sum::<f64>() / n as f64;
        let squares: f64 = accuracies.iter().map(|a| (a - mean).powi(2)).sum();
        Some(Self {
            n_clients: u32::try_from(n).expect("a plan bounds its clients"),
            mean,
            std: if n == 1 { 0.0 } else { (squares / (n - 1) as f64).sqrt() },
            min,
            tenth: accuracies[n.div_ceil(10) - 1],
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_over_clients_each_counted_once() {
        assert_eq!(Fairness::of(Vec::new()), None);
        let one = Fairness::of(vec![0.5]).unwrap();
        assert_eq!((one.mean, one.std, one.min, one.tenth, one.max), (0.5, 0.0, 0.5, 0.5, 0.5));
        let many = Fairness::of((0..20).rev().map(f64::from).collect()).unwrap();
        assert_eq!((many.n_clients, many.mean, many.tenth), (20, 9.5, 1.0));
        assert!((many.std - 35f64.sqrt()).abs() < 1e-12);
    }
}
