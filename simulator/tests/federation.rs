//! Whole federations on small generated data: what a researcher relies on.

use std::collections::BTreeMap;

use comity_burn_models::{Device, DeviceChoice};
use comity_datasets::{Contract, Dataset, Normalise, Partition, Scale};
use comity_federation::{Plan, RunStatus};
use comity_privacy::{Estimate, LedgerEntry, LossRequest, PrivacyUnit};
use comity_simulator::{
    FederationData, NoiseMode, Progress, Simulation, SimulationError, SimulationResult, World,
    divide,
};

/// Four features, three classes; the DP part is put in the place of `PRIVACY`.
const PLAN: &str = r#"
name = "small"
purpose = "A test."
seed = 1
rounds = 3
[data]
shape = [4]
classes = 3
normalise = { mean = 0.5, std = 0.5 }
[model]
layers = [{ type = "linear", out = 8 }, { type = "tanh" }, { type = "linear", out = 3 }]
[training]
optimizer = { type = "sgd", learning_rate = 0.5 }
batch = 32
local_epochs = 2
microbatch = 16
[privacy]
PRIVACY
[cohort]
min_clients = 2
min_countries = 2
gathering_deadline = "1m"
round_deadline = "2m"
weights = "declared"
clients = [{ id = "KR/a", records = 300 }, { id = "JP/b", records = 300 }, { id = "VN/c", records = 300 }]
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
fixed_point_bits = 22
"#;

const DP: &str = r#"mode = "dp_sgd"
unit = "record"
epsilon = 8.0
delta = 1e-5
clip_norm_l2 = 0.5
metrics = { accuracy_rho_per_round = 0.0005 }"#;

fn plan(privacy: &str) -> Plan {
    Plan::from_toml(&PLAN.replace("PRIVACY", privacy)).unwrap()
}

fn contract(plan: &Plan) -> Contract {
    Contract { shape: plan.data.shape.clone(), n_classes: plan.data.classes, scale: Scale::Bytes }
}

/// Class `c` has a high feature `c`; the rest is a fixed pattern.
fn examples(plan: &Plan, n: u32) -> Dataset {
    let labels: Vec<u32> = (0..n).map(|i| i * 7 % 3).collect();
    let features = (0..n)
        .flat_map(|i| (0..4).map(move |feature| (i, feature)))
        .map(|(i, feature)| {
            let high = if i * 7 % 3 == feature { 150 } else { 0 };
            (high + (i * 31 + feature * 17) % 100) as u8
        })
        .collect();
    Dataset::from_bytes(&contract(plan), features, labels).unwrap()
}

fn data(plan: &Plan) -> FederationData {
    divided(plan, examples(plan, 900))
}

fn divided(plan: &Plan, train: Dataset) -> FederationData {
    let train = train.into();
    let rows = divide(&train, &Partition::Iid, None, plan, 1).unwrap();
    FederationData::new(plan, train.data, rows, examples(plan, 200)).unwrap()
}

fn cpu() -> Device {
    DeviceChoice::Cpu.open().unwrap()
}

fn run(plan: &Plan, seed: u64, noise: NoiseMode) -> SimulationResult {
    let device = cpu();
    let data = data(plan);
    let simulation = Simulation { seed, noise, ..Simulation::new(plan, &data, &device) };
    simulation.run(&mut |_| {}).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_model_and_another_seed_another() {
    let plan = plan(DP);
    let first = run(&plan, 1, NoiseMode::Seeded);
    assert_eq!(first.report.status, RunStatus::Finished);
    assert_eq!(first.model.digest(), first.report.model);
    let again = run(&plan, 1, NoiseMode::Seeded);
    assert_eq!(first.report, again.report);
    assert_ne!(first.report.model, run(&plan, 2, NoiseMode::Seeded).report.model);
}

#[test]
fn exact_noise_differs_from_run_to_run() {
    let plan = plan(DP);
    let digests = [(); 2].map(|()| run(&plan, 1, NoiseMode::Exact).report.model);
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn a_plan_without_dp_learns_and_has_no_epsilon() {
    let result = run(&plan("mode = \"none\""), 1, NoiseMode::Seeded);
    let last = result.rounds.last().unwrap();
    assert!(last.accuracy > 0.9, "{}", last.accuracy);
    assert!(last.epsilon.values().all(Option::is_none));
    for ledger in result.ledgers.values() {
        assert_eq!(ledger.spent().epsilon, f64::INFINITY);
    }
}

#[test]
fn epsilon_is_the_ledgers_grows_and_stays_within_the_plan() {
    let plan = plan(DP);
    let result = run(&plan, 1, NoiseMode::Seeded);
    assert_eq!(result.rounds.len(), 3);
    for (client, ledger) in &result.ledgers {
        let by_round: Vec<f64> =
            result.rounds.iter().map(|score| score.epsilon[&client.country()].unwrap()).collect();
        assert!(by_round.is_sorted_by(|a, b| a < b), "{by_round:?}");
        assert_eq!(by_round[2], ledger.spent().epsilon);
        assert!(by_round[2] <= 8.0, "{by_round:?}");
        let named = plan.client(client).unwrap();
        let promised = plan.privacy_plan(named).unwrap().unwrap().epsilon_total().epsilon;
        assert!((by_round[2] - promised).abs() < 1e-6, "{by_round:?} against {promised}");
        let n_committed = ledger
            .entries()
            .iter()
            .filter(|entry| matches!(entry, LedgerEntry::Committed { .. }))
            .count();
        assert_eq!(n_committed, 3);
    }
}

#[test]
fn every_step_and_round_is_reported() {
    let plan = plan(DP);
    let data = data(&plan);
    let device = cpu();
    let simulation =
        Simulation { seed: 1, noise: NoiseMode::Seeded, ..Simulation::new(&plan, &data, &device) };
    let (mut n_steps_seen, mut rounds) = (0, Vec::new());
    let result = simulation
        .run(&mut |progress| match progress {
            Progress::Step { .. } => n_steps_seen += 1,
            Progress::Round { score, .. } => rounds.push(score.clone()),
            Progress::Resumed { .. } => panic!("nothing was begun before"),
        })
        .unwrap();
    let steps_per_round = plan.steps_per_round(&plan.cohort.clients[0]);
    assert_eq!(n_steps_seen, 3 * 3 * steps_per_round);
    assert_eq!(rounds, result.rounds);
    let n_parameters = plan.manifest().unwrap().n_parameters() as u64;
    assert!(rounds.iter().all(|r| r.bytes.values().all(|bytes| *bytes == 4 * n_parameters)));
}

/// Too few data to learn from are no reason to tell so: one record without a single value, or none at
/// all, trains as many steps, pays as much and sends as many bytes as everybody else.
#[test]
fn one_record_of_missing_values_and_none_at_all_do_not_show() {
    let plan = plan(DP);
    let mut data = data(&plan);
    let reals = Contract { scale: Scale::Real, ..contract(&plan) };
    data.set_shard(0, Dataset::from_reals(&reals, vec![f32::NAN; 4], vec![1]).unwrap());
    data.set_shard(1, examples(&plan, 0));
    let device = cpu();
    let simulation =
        Simulation { seed: 1, noise: NoiseMode::Seeded, ..Simulation::new(&plan, &data, &device) };
    let mut steps = BTreeMap::<_, u32>::new();
    let result = simulation
        .run(&mut |progress| {
            if let Progress::Step { client, .. } = progress {
                *steps.entry(client.clone()).or_default() += 1;
            }
        })
        .unwrap();
    assert_eq!(result.report.status, RunStatus::Finished);
    // 32 of 300 declared: one record is in a batch about once in ten steps, so most are empty.
    let expected = 3 * plan.steps_per_round(&plan.cohort.clients[0]);
    assert!(steps.len() == 3 && steps.values().all(|n| *n == expected), "{steps:?}");
    for round in &result.report.history {
        assert!(round.contributions.len() == 3 && round.missing.is_empty(), "{round:?}");
        assert!(round.contributions.iter().all(|c| c.n_correct.is_some()));
        assert!(round.contributions.iter().all(|c| c.bytes == round.contributions[0].bytes));
    }
    let spent: Vec<f64> = result.ledgers.values().map(|l| l.spent_at(1e-5).epsilon).collect();
    assert!(spent.iter().all(|epsilon| *epsilon == spent[0]), "{spent:?}");
}

/// What the plan asks before training is answered about right, paid for, and repeated by the seed.
#[test]
fn statistics_are_asked_before_training() {
    let asked = "[analytics]\nrho = 0.4\nqueries = [{ type = \"count\" }, \
                 { type = \"label_histogram\" }, { type = \"moments\", lower = -1.0, upper = 1.0 }, \
                 { type = \"histogram\", channel = 3, lower = -1.0, upper = 1.0, bins = 10, \
                 quantiles = [0.5] }]\n[cohort]";
    let privacy =
        DP.replace("0.0005 }", "0.0005, loss = { rho_per_round = 0.0005, upper = 4.0 } }");
    let text = PLAN.replace("PRIVACY", &privacy).replace("[cohort]", asked);
    let plan = Plan::from_toml(&text).unwrap();
    let result = run(&plan, 1, NoiseMode::Seeded);
    assert_eq!(result.report.status, RunStatus::Finished, "{:?}", result.report);
    assert_eq!(result.report, run(&plan, 1, NoiseMode::Seeded).report);
    let [
        Estimate::Count { n },
        Estimate::LabelHistogram { counts },
        Estimate::Moments { mean, std },
        Estimate::Histogram { quantiles, .. },
    ] = &result.report.statistics.as_ref().unwrap()[..]
    else {
        panic!("{:?}", result.report.statistics)
    };
    // Three clients' noise of sigma 2.3 each.
    assert!((n - 900).abs() < 40, "{n}");
    assert!(counts.iter().all(|count| (count - 300).abs() < 40), "{counts:?}");
    let clear = examples(&plan, 900)
        .batch(&(0..900).collect::<Vec<_>>(), Normalise { mean: 0.5, std: 0.5 });
    for (channel, (mean, std)) in mean.iter().zip(std).enumerate() {
        let values: Vec<f64> =
            clear.features.iter().skip(channel).step_by(4).map(|v| f64::from(*v)).collect();
        let expected = values.iter().sum::<f64>() / 900.0;
        let variance = values.iter().map(|v| (v - expected).powi(2)).sum::<f64>() / 900.0;
        assert!((mean - expected).abs() < 0.1, "channel {channel}: {mean} {expected}");
        assert!((std * std - variance).abs() < 0.15, "channel {channel}: {std} {variance}");
    }
    assert!((-1.0..=1.0).contains(&quantiles[0].1));
    assert_eq!(result.rounds.len(), 3);
    for round in &result.report.history[1..] {
        for contribution in &round.contributions {
            let loss = contribution.loss_sum.unwrap() as f64 * LossRequest::UNIT / 300.0;
            // Noise of sigma 32 * 4 nats over 300 records.
            assert!((-2.0..4.0).contains(&loss), "{loss}");
        }
    }
    for (client, ledger) in &result.ledgers {
        let promised = plan.privacy_plan(plan.client(client).unwrap()).unwrap().unwrap();
        let spent = ledger.spent_at(1e-5).epsilon;
        assert!((spent - promised.epsilon_total().epsilon).abs() < 1e-6 && spent <= 8.0, "{spent}");
        assert_eq!(ledger.runs().next().unwrap().rounds_released, 4);
    }
}

/// The statistics become the model's first tensors, and stay so through training.
#[test]
fn features_are_standardised_by_what_was_asked() {
    let asked = "[analytics]\nrho = 0.4\n\
                 queries = [{ type = \"moments\", lower = 0.0, upper = 1.0 }]\n[cohort]";
    let text = PLAN
        .replace("PRIVACY", DP)
        .replace("[cohort]", asked)
        .replace("mean = 0.5, std = 0.5", "mean = 0.0, std = 1.0")
        .replace("layers = [", "layers = [{ type = \"standardise\" }, ");
    let plan = Plan::from_toml(&text).unwrap();
    let result = run(&plan, 1, NoiseMode::Seeded);
    assert_eq!(result.report.status, RunStatus::Finished, "{:?}", result.report);
    let Estimate::Moments { mean, std } = &result.report.statistics.as_ref().unwrap()[0] else {
        panic!("{:?}", result.report.statistics)
    };
    let manifest = plan.manifest().unwrap();
    let frozen = &result.model.values()[manifest.n_trainable()..];
    let expected: Vec<f32> = mean.iter().chain(std).map(|value| *value as f32).collect();
    assert_eq!(frozen, expected);
    let n_trained = 4 * manifest.n_trainable() as u64;
    assert!(result.rounds[0].bytes.values().all(|bytes| *bytes == n_trained));
    assert!(result.rounds.last().unwrap().accuracy > 0.6, "{:?}", result.rounds.last());
}

/// Persons with six rows each, of whom four are used.
#[test]
fn persons_are_protected_where_the_plan_says_so() {
    let text = PLAN
        .replace("PRIVACY", &DP.replace("\"record\"", "{ person = { records_max = 4 } }"))
        .replace("batch = 32", "batch = 8")
        .replace("records = 300", "records = 300, persons = 50");
    let plan = Plan::from_toml(&text).unwrap();
    let persons = |n: u32| examples(&plan, n).with_persons((0..n).map(|row| row / 6).collect());
    let data = divided(&plan, persons(900).unwrap());
    for client in 0..3 {
        // Nobody is at two institutions.
        let rows = data.shard(client).rows_by_person().unwrap();
        assert!(rows.len() == 50 && rows.iter().all(|rows| rows.len() == 6), "{client}");
    }
    let device = cpu();
    let simulation =
        Simulation { seed: 1, noise: NoiseMode::Seeded, ..Simulation::new(&plan, &data, &device) };
    let result = simulation.run(&mut |_| {}).unwrap();
    assert_eq!(result.report.status, RunStatus::Finished);
    assert!(result.rounds.last().unwrap().accuracy > 0.6, "{:?}", result.rounds.last());
    for ledger in result.ledgers.values() {
        let run = ledger.runs().next().unwrap();
        let terms = run.terms.unwrap();
        assert_eq!(terms.unit(), PrivacyUnit::Person { records_max: 4 });
        assert_eq!((terms.sampling_rate(), terms.steps_per_round()), (8.0 / 50.0, 13));
    }

    // Without ids nobody takes part, and everybody says why.
    let data = divided(&plan, examples(&plan, 900));
    let device = cpu();
    let simulation =
        Simulation { seed: 1, noise: NoiseMode::Seeded, ..Simulation::new(&plan, &data, &device) };
    let report = simulation.run(&mut |_| {}).unwrap().report;
    assert_eq!(report.status, RunStatus::Aborted);
    assert!(format!("{report:?}").contains("the column of their ids as `person`"), "{report:?}");
}

/// One client's training fails: the round goes on without it, or ends without a quorum.
#[test]
fn a_client_that_cannot_train_is_missing_with_its_reason() {
    let mut plan = plan("mode = \"none\"");
    let mut data = data(&plan);
    data.set_shard(1, examples(&plan, 0));
    let result = |plan: &Plan| {
        let device = cpu();
        let simulation = Simulation {
            seed: 1,
            noise: NoiseMode::Seeded,
            ..Simulation::new(plan, &data, &device)
        };
        simulation.run(&mut |_| {}).unwrap().report
    };
    let report = result(&plan);
    assert_eq!(report.status, RunStatus::Finished);
    let (client, reason) = &report.history[0].missing[0];
    assert_eq!(client.to_string(), "JP/b");
    assert!(reason.contains("empty"), "{reason}");
    plan.cohort.min_clients = 3;
    let report = result(&plan);
    assert_eq!(report.status, RunStatus::Aborted);
    assert!(report.reason.unwrap().contains("quorum"));
}

#[test]
fn data_of_another_plan_are_refused() {
    let plan = plan(DP);
    let shards = plan.cohort.clients[..2].iter().map(|c| (c.id.clone(), examples(&plan, 9)));
    let data = FederationData::of_shards(shards.collect(), examples(&plan, 9));
    let device = cpu();
    let simulation =
        Simulation { seed: 1, noise: NoiseMode::Seeded, ..Simulation::new(&plan, &data, &device) };
    let error = simulation.run(&mut |_| {}).unwrap_err();
    assert!(matches!(error, SimulationError::Shards { in_plan: 3, in_data: 2 }), "{error}");
}

const WORLD: &str = r#"
seed = 1
[data]
train = { kind = "idx", images = "images.idx", labels = "labels.idx" }
test = { kind = "idx", images = "images.idx", labels = "labels.idx" }
[partition]
kind = "iid"
"#;

#[test]
fn a_world_whose_data_do_not_fit_the_plan_is_a_clear_error() {
    let plan = plan(DP);
    let dir = tempfile::tempdir().unwrap();
    comity_datasets::write_idx(dir.path(), &examples(&plan, 90)).unwrap();
    let world = World::from_toml(WORLD).unwrap();
    let loaded = world.load(&plan, dir.path()).unwrap();
    assert_eq!((0..3).map(|client| loaded.n_rows(client)).sum::<usize>(), 90);

    let with = |from: &str, to: &str| {
        let text = PLAN.replace("PRIVACY", DP).replacen(from, to, 1);
        world.load(&Plan::from_toml(&text).unwrap(), dir.path()).unwrap_err().to_string()
    };
    let error = with("shape = [4]", "shape = [5]");
    assert!(error.contains("[4]") && error.contains("[5]"), "{error}");
    let text = PLAN.replace("PRIVACY", DP).replace("classes = 3", "classes = 2");
    let two_classes = Plan::from_toml(&text.replace("out = 3", "out = 2")).unwrap();
    let error = world.load(&two_classes, dir.path()).unwrap_err().to_string();
    assert!(error.contains("label") && error.contains("0 to 1"), "{error}");

    let error = world.load(&plan, &dir.path().join("elsewhere")).unwrap_err();
    assert!(matches!(error, SimulationError::DataMissing { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--data DIR"));
}

/// What the README's first command runs: the model fits the data, the budget can be met.
#[test]
fn the_sample_plan_and_world_are_usable() {
    let plan = Plan::from_toml(include_str!("../../examples/fashion/plan.toml")).unwrap();
    World::from_toml(include_str!("../../examples/fashion/world.toml")).unwrap();
    let countries: Vec<&str> =
        plan.cohort.clients.iter().map(|named| named.id.institution()).collect();
    assert_eq!(countries, ["seoul-lab", "tokyo-lab", "hanoi-lab"]);
    for named in &plan.cohort.clients {
        let privacy = plan.privacy_plan(named).unwrap().expect("the sample has DP");
        let total = privacy.epsilon_total().epsilon;
        assert!(total <= 8.0 && total > 7.9, "{}: {total}", named.id);
        assert_eq!(privacy.budget().delta.get(), 1e-5);
    }
}

/// What `examples/fashion-one/run.sh` runs: one institution, the models fit, the budgets can be met.
#[test]
fn the_plans_of_one_institution_are_usable() {
    World::from_toml(include_str!("../../examples/fashion-one/world.toml")).unwrap();
    let cnn = Plan::from_toml(include_str!("../../examples/fashion-one/cnn.toml")).unwrap();
    let scatter = Plan::from_toml(include_str!("../../examples/fashion-one/scatter.toml")).unwrap();
    assert_eq!((cnn.model.n_front(), scatter.model.n_front()), (0, 1));
    for plan in [cnn, scatter] {
        let [client] = &plan.cohort.clients[..] else { panic!("one institution") };
        assert_eq!(client.records, 60_000);
        let privacy = plan.privacy_plan(client).unwrap().expect("both have DP");
        let total = privacy.epsilon_total();
        assert!(total.epsilon <= 3.0 && total.epsilon > 2.97, "{}: {total:?}", plan.name);
        assert_eq!(privacy.budget().delta.get(), 1e-5);
    }
}
