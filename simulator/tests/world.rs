//! What a world file says about data, and what a federation finds of it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use comity_burn_models::DeviceChoice;
use comity_datasets::{Contract, Dataset, Normalise, Scale};
use comity_federation::Plan;
use comity_simulator::{ClientRows, FederationData, Simulation, SimulationError, World};

const PLAN: &str = r#"
name = "small"
purpose = "A test."
seed = 1
rounds = 2
[data]
shape = [1]
classes = 2
normalise = { mean = 0.0, std = 1.0 }
[model]
layers = [{ type = "linear", out = 2 }]
[training]
optimizer = { type = "sgd", learning_rate = 0.1 }
batch = 4
local_epochs = 1
microbatch = 4
[privacy]
mode = "none"
[cohort]
min_clients = 1
min_countries = 1
gathering_deadline = "1m"
round_deadline = "1m"
weights = "declared"
clients = [{ id = "KR/a", records = 10 }, { id = "JP/b", records = 10 }]
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
fixed_point_bits = 20
"#;

const WORLD: &str = r#"
seed = 1
[data]
train = { kind = "csv", path = "table.csv", label = "class", header = true }
client_test = { share = 0.2, stratified = true }
[partition]
kind = "iid"
"#;

fn plan() -> Plan {
    Plan::from_toml(PLAN).unwrap()
}

/// A folder with `table.csv`: feature `i`, a quarter of class 1.
fn folder(n: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..n).map(|i| format!("{i},{}\n", u32::from(i % 4 == 0))).collect();
    std::fs::write(dir.path().join("table.csv"), "x,class\n".to_owned() + &rows).unwrap();
    dir
}

fn load(world: &str, plan: &Plan, dir: &Path) -> Result<FederationData, SimulationError> {
    World::from_toml(world).unwrap().load(plan, dir)
}

/// The only feature of each example.
fn features(data: &comity_datasets::Dataset) -> Vec<u32> {
    let all: Vec<usize> = (0..data.len()).collect();
    data.batch(&all, Normalise::IDENTITY).features.into_iter().map(|x| x as u32).collect()
}

#[test]
fn clients_never_train_on_what_they_keep_for_testing_and_together_that_is_the_test_set() {
    let dir = folder(80);
    let data = load(WORLD, &plan(), dir.path()).unwrap();
    assert_eq!(data.clients().map(ToString::to_string).collect::<Vec<_>>(), ["KR/a", "JP/b"]);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for client in 0..2 {
        let kept = data.client_test(client).unwrap();
        assert_eq!((data.n_rows(client), kept.len()), (32, 8));
        let labels = data.label_counts(client);
        assert_eq!(labels, data.shard(client).label_counts());
        let share = kept.label_counts()[1] as f64 / (labels[1] + kept.label_counts()[1]) as f64;
        assert!((0.1..0.3).contains(&share), "{share}");
        train.extend(features(&data.shard(client)));
        test.extend(features(&kept));
    }
    let all: BTreeSet<u32> = train.iter().chain(&test).copied().collect();
    assert_eq!(all, (0..80).collect());
    test.sort_unstable();
    assert_eq!(features(&data.test), test);

    // With a public test set, that is what is scored; without either there is nothing.
    let test_set = "test = { kind = \"csv\", path = \"table.csv\", label = 1, header = true }";
    let both = WORLD.replace("[partition]", &format!("{test_set}\n[partition]"));
    let data = load(&both, &plan(), dir.path()).unwrap();
    assert_eq!((data.test.len(), data.n_rows(0), data.has_client_tests()), (80, 32, true));
    let public = both.replace("client_test =", "# client_test =");
    let data = load(&public, &plan(), dir.path()).unwrap();
    assert!(!data.has_client_tests() && data.client_test(0).is_none());
    assert_eq!(data.n_rows(0), 40);
    let neither = WORLD.replace("client_test =", "# client_test =");
    let error = load(&neither, &plan(), dir.path()).unwrap_err();
    assert!(matches!(error, SimulationError::NoTest), "{error}");
    let all_of_it = WORLD.replace("0.2", "1.0");
    let error = load(&all_of_it, &plan(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("share 1 ") && error.contains("below 1"), "{error}");
}

#[test]
fn clients_declare_what_they_train_on_where_the_world_says_so() {
    let dir = folder(50);
    let text = WORLD.replace("client_test", "records = \"from_partition\"\nclient_test");
    let world = World::from_toml(&text).unwrap();
    let plan = plan();
    let data = world.load(&plan, dir.path()).unwrap();
    let resolved = world.resolve(&plan, &data).unwrap();
    let records: Vec<u64> = resolved.cohort.clients.iter().map(|c| c.records).collect();
    assert_eq!(records, [20, 20]);
    assert_ne!(resolved.digest(), plan.digest());
    let declared = World::from_toml(WORLD).unwrap().resolve(&plan, &data).unwrap();
    assert_eq!(declared.digest(), plan.digest());
    let device = DeviceChoice::Cpu.open().unwrap();
    let simulation = Simulation::new(&resolved, &data, &device);
    let report = simulation.run(&mut |_| {}).unwrap().report;
    assert_eq!(report.plan, resolved.digest());
    assert!(report.history[0].contributions.iter().all(|c| c.weight == 20), "{report:?}");
}

/// What is computed once a data set has to stay beside it from round to round.
#[test]
fn rows_are_gathered_when_they_are_needed_unless_something_is_kept_beside_them() {
    let dir = folder(80);
    let data = load(WORLD, &plan(), dir.path()).unwrap();
    assert!(matches!(data.shard(1), Cow::Owned(_)));

    let plan = Plan::from_toml(include_str!("../../examples/fashion-one/scatter.toml")).unwrap();
    let contract = Contract { shape: vec![1, 28, 28], n_classes: 10, scale: Scale::Bytes };
    let pictures = Dataset::from_bytes(&contract, vec![7; 5 * 28 * 28], vec![3; 5]).unwrap();
    let rows = vec![ClientRows { train: vec![1, 4], test: vec![2] }];
    let data = FederationData::new(&plan, pictures.clone(), rows, pictures).unwrap();
    assert!(matches!(data.shard(0), Cow::Borrowed(_)));
    assert_eq!((data.n_rows(0), data.label_counts(0)[3]), (2, 2));
    assert_eq!(data.client_test(0).unwrap().len(), 1);
}

#[test]
fn persons_are_kept_for_testing_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..60).map(|i| format!("{i},{},p{}\n", i / 3 % 2, i / 3)).collect();
    std::fs::write(dir.path().join("table.csv"), "x,class,who\n".to_owned() + &rows).unwrap();
    let text = PLAN
        .replace(
            "mode = \"none\"",
            "mode = \"dp_sgd\"\nunit = { person = { records_max = 3 } }\nepsilon = 50.0\n\
             delta = 1e-2\nclip_norm_l2 = 1.0",
        )
        .replace("records = 10", "records = 24, persons = 8");
    let plan = Plan::from_toml(&text).unwrap();
    let world = WORLD
        .replace("header = true", "header = true, person = \"who\"")
        .replace("client_test", "records = \"from_partition\"\nclient_test");
    let world = World::from_toml(&world).unwrap();
    let data = world.load(&plan, dir.path()).unwrap();
    let mut seen = BTreeSet::new();
    for client in 0..2 {
        for rows in [data.shard(client), data.client_test(client).unwrap()] {
            let persons: BTreeSet<u32> = features(&rows).iter().map(|row| row / 3).collect();
            assert_eq!(rows.len(), 3 * persons.len());
            assert!(persons.iter().all(|person| seen.insert(*person)));
        }
    }
    assert_eq!(seen.len(), 20);
    let resolved = world.resolve(&plan, &data).unwrap();
    for named in &resolved.cohort.clients {
        assert_eq!((named.records, named.persons), (24, Some(8)));
    }
}
