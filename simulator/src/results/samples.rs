//! A small plan, world and result for the tests of this room.

use std::collections::BTreeMap;

use comity_federation::{ModelDigest, Plan, Run, RunId, RunStatus, Time};

use super::{ClientLabels, Environment, PartitionTable};
use crate::{ClientRound, Fairness, RoundScore, SimulationResult, World};

/// Three clients of two countries, without DP.
pub(crate) fn plan() -> Plan {
    let text = r#"
name = "small"
purpose = "A <test> of three clients."
seed = 1
rounds = 3
[data]
shape = [4]
classes = 3
normalise = { mean = 0.5, std = 0.5 }
[model]
layers = [{ type = "linear", out = 3 }]
[training]
optimizer = { type = "sgd", learning_rate = 0.5 }
batch = 32
local_epochs = 2
microbatch = 16
[privacy]
mode = "none"
[cohort]
min_clients = 2
min_countries = 2
gathering_deadline = "1m"
round_deadline = "2m"
weights = "declared"
clients = [{ id = "KR/a", records = 300 }, { id = "JP/b", records = 300 }, { id = "KR/c", records = 300 }]
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
fixed_point_bits = 22
"#;
    Plan::from_toml(text).unwrap()
}

pub(crate) fn world() -> World {
    let text = r#"
seed = 7
[data]
train = { kind = "idx", images = "i", labels = "l" }
test = { kind = "idx", images = "ti", labels = "tl" }
[partition]
kind = "iid"
"#;
    World::from_toml(text).unwrap()
}

pub(crate) fn environment() -> Environment {
    Environment::here(2, "cpu", "no differential privacy", 7, 1)
}

/// Scores of `n` rounds: the first without fairness and ε, one client missing in each third.
pub(crate) fn rounds(n: u32) -> Vec<RoundScore> {
    let score = |round: u32| {
        let accuracy = 1.0 - 0.8 / f64::from(round);
        let fairness = (round > 1).then(|| {
            Fairness::of(vec![accuracy - 0.1, accuracy, accuracy + 0.01]).expect("three clients")
        });
        let epsilon = (round > 1).then_some(f64::from(round) / 3.0);
        RoundScore {
            round,
            accuracy,
            loss: 2.3 / f64::from(round),
            model: ModelDigest([round as u8; 32]),
            seconds: 0.1 + f64::from(round) / 64.0,
            clock_s: f64::from(round) * 12.5,
            n_contributions: if round.is_multiple_of(3) { 2 } else { 3 },
            n_missing: u32::from(round.is_multiple_of(3)),
            epsilon: BTreeMap::from([
                ("JP".parse().unwrap(), epsilon),
                ("KR".parse().unwrap(), epsilon.map(|e| e * 1.5)),
            ]),
            bytes: BTreeMap::from([("KR".parse().unwrap(), 2400 + u64::from(round))]),
            fairness,
            backdoor: (round > 2).then_some(0.25),
        }
    };
    (1..=n).map(score).collect()
}

/// Everybody's part in `round`.
pub(crate) fn clients(round: u32) -> Vec<ClientRound> {
    ["JP/b", "KR/a", "KR/c"]
        .iter()
        .enumerate()
        .map(|(index, id)| ClientRound {
            round,
            client: id.parse().unwrap(),
            missing: (index == 2 && round.is_multiple_of(3))
                .then(|| "dropped out, \"again\"".to_owned()),
            staleness: 0,
            bytes: if index == 0 { 0 } else { 1200 },
            epsilon: None,
            arrived_s: Some(f64::from(round)),
            accuracy: Some(0.5 + 0.1 * index as f64),
            loss: Some(1.0),
        })
        .collect()
}

pub(crate) fn partition() -> PartitionTable {
    let plan = plan();
    PartitionTable {
        n_classes: 3,
        clients: (plan.cohort.clients.iter().enumerate())
            .map(|(index, named)| ClientLabels {
                client: named.id.clone(),
                by_label: vec![100 * index, 30, 300 - 90 * index],
            })
            .collect(),
    }
}

/// A finished run of [`plan`] with `n` rounds.
pub(crate) fn result(n: u32) -> SimulationResult {
    let plan = plan();
    let model = plan.manifest().unwrap().initial_parameters(1);
    let now = Time(0);
    let id = RunId::derive(&plan.name, &plan.digest(), "test", now);
    let mut report = Run::new(id, plan, model.digest(), now).report();
    report.status = RunStatus::Finished;
    SimulationResult {
        report,
        rounds: rounds(n),
        model,
        ledgers: BTreeMap::new(),
        institutions: None,
        fine_tuned: None,
    }
}
