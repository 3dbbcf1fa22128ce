//! Whole institutions as the unit of privacy: noise on the sum of their clipped changes.

use comity_burn_models::DeviceChoice;
use comity_datasets::{Contract, Dataset, Scale};
use comity_federation::{Plan, RunStatus};
use comity_privacy::PrivacyUnit;
use comity_simulator::{FederationData, NoiseMode, Simulation, SimulationResult, World, divide};

const PLAN: &str = r#"
name = "institutions"
purpose = "A test."
seed = 1
rounds = 4
[data]
shape = [2]
classes = 2
normalise = { mean = 0.5, std = 0.5 }
[model]
layers = [{ type = "linear", out = 2 }]
[training]
optimizer = { type = "sgd", learning_rate = 0.5 }
batch = 8
local_epochs = 2
microbatch = 8
[privacy]
mode = "dp_fedavg"
epsilon = 50.0
delta = 1e-3
clip_norm_l2 = 0.5
cohort_expected = 40
[cohort]
min_clients = 1
min_countries = 1
gathering_deadline = "1m"
round_deadline = "2m"
weights = "uniform"
clients = { n = 80, countries = ["KR", "JP"], records = 8 }
[aggregation]
strategy = "fedavg"
server_learning_rate = 2.0
fixed_point_bits = 20
"#;

/// Class 1 has a high second feature.
fn examples(plan: &Plan, n: u32) -> Dataset {
    let contract = Contract {
        shape: plan.data.shape.clone(),
        n_classes: plan.data.classes,
        scale: Scale::Bytes,
    };
    let features =
        (0..n).flat_map(|i| [100 + (i * 7 % 50) as u8, (i % 2 * 150 + i * 13 % 60) as u8]);
    Dataset::from_bytes(&contract, features.collect(), (0..n).map(|i| i % 2).collect()).unwrap()
}

/// Eight rows a client, whatever the number of clients.
fn data(plan: &Plan) -> FederationData {
    let rows = examples(plan, 8 * 80);
    let eight = |i: usize| rows.subset(&(8 * i..8 * i + 8).collect::<Vec<_>>());
    let clients = plan.cohort.clients.iter().enumerate();
    let shards = clients.map(|(i, client)| (client.id.clone(), eight(i))).collect();
    FederationData::of_shards(shards, examples(plan, 200))
}

fn run(plan: &Plan, noise: NoiseMode) -> SimulationResult {
    let device = DeviceChoice::Cpu.open().unwrap();
    let data = data(plan);
    let simulation = Simulation { seed: 1, noise, ..Simulation::new(plan, &data, &device) };
    simulation.run(&mut |_| {}).unwrap()
}

#[test]
fn a_federation_that_protects_institutions_learns_and_states_what_it_cost() {
    let plan = Plan::from_toml(PLAN).unwrap();
    let result = run(&plan, NoiseMode::Exact);
    assert_eq!(result.report.status, RunStatus::Finished);
    assert_eq!(result.model.digest(), result.report.model);
    let accuracy = result.rounds.last().unwrap().accuracy;
    assert!(accuracy > 0.9, "{accuracy}");
    let spent: Vec<f64> =
        result.rounds.iter().map(|score| score.epsilon.values().next().unwrap().unwrap()).collect();
    assert!(spent.windows(2).all(|pair| pair[0] < pair[1]) && spent[3] <= 50.0, "{spent:?}");
    for round in &result.report.history {
        assert!((15..=65).contains(&round.cohort.len()), "{}", round.cohort.len());
        assert_eq!(round.cohort.len(), round.contributions.len());
    }
    let statement = result.institutions.unwrap();
    assert_eq!(statement.unit, Some(PrivacyUnit::Institution));
    assert_eq!((statement.units_declared, statement.runs[0].rounds_released), (80, 4));
    assert!(statement.randomness.contains("operating system"));
    assert!(statement.exclusions[0].contains("whoever adds the noise"));
    let seeded = run(&plan, NoiseMode::Seeded).institutions.unwrap();
    assert!(seeded.randomness.contains("not private"), "{}", seeded.randomness);
}

#[test]
fn the_same_seed_gives_the_same_model() {
    let plan = Plan::from_toml(PLAN).unwrap();
    assert_eq!(run(&plan, NoiseMode::Seeded).report, run(&plan, NoiseMode::Seeded).report);
}

#[test]
fn a_round_of_nobody_goes_on() {
    let text = PLAN
        .replace("n = 80", "n = 30")
        .replace("cohort_expected = 40", "cohort_expected = 1")
        .replace("delta = 1e-3", "delta = 0.03")
        .replace("rounds = 4", "rounds = 12");
    let plan = Plan::from_toml(&text).unwrap();
    let result = run(&plan, NoiseMode::Seeded);
    assert_eq!(result.report.status, RunStatus::Finished);
    let sizes: Vec<usize> = result.report.history.iter().map(|round| round.cohort.len()).collect();
    assert!(sizes.contains(&0) && sizes.iter().any(|n| *n > 0), "{sizes:?}");
    // Noise is added all the same.
    let nobody = result.report.history.iter().find(|round| round.cohort.is_empty()).unwrap();
    assert_ne!(nobody.model, Some(nobody.base));
}

#[test]
fn the_example_names_a_thousand_institutions_of_one_kind() {
    let plan = Plan::from_toml(include_str!("../../examples/institutions/plan.toml")).unwrap();
    let world = World::from_toml(include_str!("../../examples/institutions/world.toml")).unwrap();
    let mut small = Plan::from_toml(PLAN).unwrap();
    small.cohort.clients = plan.cohort.clients;
    let examples = examples(&small, 60_000).into();
    let rows = divide(&examples, &world.partition, None, &small, world.seed).unwrap();
    assert_eq!((rows.len(), rows[999].train.len()), (1000, 60));
}
