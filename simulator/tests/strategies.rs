//! What the strategies are for, in small: clients that differ, clients that lie, and the plans and worlds with
//! which it is shown in large.

use comity_burn_models::{Device, DeviceChoice};
use comity_datasets::{Contract, Dataset, Scale};
use comity_federation::{Plan, RunStatus};
use comity_simulator::{Conduct, FederationData, RoundScore, Simulation, World};

const PLAN: &str = r#"
name = "strategies"
purpose = "A test."
seed = 1
rounds = 40
[data]
shape = [6]
classes = 3
normalise = { mean = 0.5, std = 0.5 }
[model]
layers = [{ type = "linear", out = 3 }]
[training]
optimizer = { type = "sgd", learning_rate = 0.5 }
batch = 16
local_steps = 40
microbatch = 16
[privacy]
mode = "none"
[cohort]
min_clients = SAMPLE
min_countries = 1
gathering_deadline = "1m"
round_deadline = "100s"
sample = { clients = SAMPLE }
weights = "uniform"
clients = { n = 10, countries = ["KR", "JP"], records = 60 }
[aggregation]
strategy = STRATEGY
server_learning_rate = 1.0
fixed_point_bits = 22
"#;

/// `sample` of the ten clients in a round.
fn plan(strategy: &str, sample: u32) -> Plan {
    let text = PLAN.replace("STRATEGY", strategy).replace("SAMPLE", &sample.to_string());
    Plan::from_toml(&text).unwrap()
}

/// Class `c` has a high feature `c` among noise, which differs by `seed`. Nine in ten are of class `most`, if there is
/// one.
fn examples(plan: &Plan, n: u32, seed: u64, most: Option<u32>) -> Dataset {
    let contract = Contract { shape: plan.data.shape.clone(), n_classes: 3, scale: Scale::Bytes };
    let labels: Vec<u32> = (0..n)
        .map(|i| match most {
            Some(most) if i % 10 != 0 => most,
            Some(_) => i / 10 % 3,
            None => i % 3,
        })
        .collect();
    let mut state = seed + 1;
    let mut features = Vec::new();
    for label in &labels {
        for feature in 0..6 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let high = if *label == feature { 60 } else { 0 };
            features.push(high + (state >> 57) as u8);
        }
    }
    Dataset::from_bytes(&contract, features, labels).unwrap()
}

/// Accuracy and loss, means of the last half of the rounds: single ones swing with who was asked.
fn run(plan: &Plan, is_uneven: bool, conduct: &str) -> (f64, f64) {
    let most = |client: u64| is_uneven.then_some(client as u32 % 3);
    let clients = plan.cohort.clients.iter().zip(0..);
    let shards =
        clients.map(|(named, i)| (named.id.clone(), examples(plan, 60, i, most(i)))).collect();
    let data = FederationData::of_shards(shards, examples(plan, 600, 99, None));
    let device: Device = DeviceChoice::Cpu.open().unwrap();
    let conduct: Conduct = toml::from_str(conduct).unwrap();
    let simulation = Simulation { conduct, ..Simulation::new(plan, &data, &device) };
    let result = simulation.run(&mut |_| {}).unwrap();
    assert_eq!(result.report.status, RunStatus::Finished);
    let last = &result.rounds[result.rounds.len() / 2..];
    let mean = |of: fn(&RoundScore) -> f64| last.iter().map(of).sum::<f64>() / last.len() as f64;
    (mean(|score| score.accuracy), mean(|score| score.loss))
}

/// Where each client sees another class, local steps drift apart; what holds them together ends better.
#[test]
fn corrected_steps_beat_the_mean_where_clients_differ() {
    let of = |strategy: &str| run(&plan(strategy, 3), true, "");
    let (fedavg, fedprox, scaffold) =
        (of("\"fedavg\""), of("{ fedprox = { mu = 0.1 } }"), of("\"scaffold\""));
    let all = format!("{fedavg:?} {fedprox:?} {scaffold:?}");
    assert!(fedprox.0 > fedavg.0 && fedprox.1 < fedavg.1, "{all}");
    assert!(scaffold.0 > fedavg.0 && scaffold.1 < fedavg.1, "{all}");
}

/// Two of ten send ten times the opposite of what they learnt.
#[test]
fn a_robust_strategy_holds_where_the_mean_falls() {
    let lies = "attackers = { clients = 2, attack = { kind = \"sign_flip\", factor = 10.0 } }";
    let accuracy = |strategy: &str| run(&plan(strategy, 10), false, lies).0;
    let fedavg = accuracy("\"fedavg\"");
    let median = accuracy("\"median\"");
    let krum = accuracy("{ krum = { byzantine = 2 } }");
    assert!(fedavg < 0.4 && median > 0.7 && krum > 0.7, "{fedavg} {median} {krum}");
}

#[test]
fn the_plan_and_worlds_of_uneven_institutions_are_usable() {
    let plans = [
        include_str!("../../examples/skew/plan.toml"),
        include_str!("../../examples/skew/lies.toml"),
    ];
    for (plan, strategies) in plans.into_iter().zip([
        ["\"fedavg\"", "\"scaffold\"", "{ fedprox = { mu = 0.1 } }"],
        ["\"median\"", "{ trimmed_mean = { trim = 2 } }", "{ krum = { byzantine = 2 } }"],
    ]) {
        for strategy in strategies {
            Plan::from_toml(
                &plan.replace("strategy = \"fedavg\"", &format!("strategy = {strategy}")),
            )
            .unwrap();
        }
    }
    let parse = |text: &str| World::from_toml(text).unwrap();
    parse(include_str!("../../examples/skew/world.toml"));
    let world = parse(include_str!("../../examples/skew/attackers.toml"));
    assert_eq!(world.conduct.attackers.unwrap().clients, 2);
}
