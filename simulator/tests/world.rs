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

/// Three sites of 10, 20 and 30 rows, in one table with a column, in three tables, and in three folders.
fn sites() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = "x,site,class\n".to_owned();
    let mut first = 0;
    for (site, n) in [("s1", 10), ("s2", 20), ("s3", 30)] {
        let rows = (first..first + n).map(|i| (i, i % 3 / 2));
        first += n;
        whole.extend(rows.clone().map(|(i, class)| format!("{i},{site},{class}\n")));
        let part: String = rows.map(|(i, class)| format!("{i},{class}\n")).collect();
        std::fs::create_dir(dir.path().join(site)).unwrap();
        std::fs::write(dir.path().join(site).join("rows.csv"), "x,class\n".to_owned() + &part)
            .unwrap();
    }
    std::fs::write(dir.path().join("table.csv"), whole).unwrap();
    dir
}

fn three() -> Plan {
    Plan::from_toml(
        &PLAN.replace("records = 10 }]", "records = 10 }, { id = \"VN/c\", records = 10 }]"),
    )
    .unwrap()
}

const SITE: &str = "{ kind = \"csv\", path = \"DIR/rows.csv\", label = \"class\", header = true }";

fn list(dirs: &[&str]) -> String {
    let sources: Vec<String> = dirs.iter().map(|dir| SITE.replace("DIR/", dir)).collect();
    format!("train = [{}]", sources.join(", "))
}

fn with(train: &str, partition: &str) -> String {
    let start = WORLD.find("train = ").unwrap();
    let end = WORLD.find("client_test").unwrap();
    let text = format!("{}{train}\n{}", &WORLD[..start], &WORLD[end..]);
    text.replace("kind = \"iid\"", partition)
}

#[test]
fn a_client_is_a_value_of_a_column_a_source_or_a_folder() {
    let dir = sites();
    let one_table =
        "train = { kind = \"csv\", path = \"table.csv\", label = \"class\", header = true }";
    let by_column = with(one_table, "kind = \"column\"\ncolumn = \"site\"");
    let by_source = with(&list(&["s1/", "s2/", "s3/"]), "kind = \"sources\"");
    let by_folder = with(&format!("train = {}", SITE.replace("DIR/", "")), "kind = \"folder\"");
    let plan = three();
    let all: Vec<FederationData> = [&by_column, &by_source, &by_folder]
        .map(|world| load(world, &plan, dir.path()).unwrap())
        .into();
    for (client, n_kept) in [2, 4, 6].into_iter().enumerate() {
        let expected = features(&all[0].shard(client));
        assert_eq!(expected.len(), 4 * n_kept);
        for data in &all {
            assert_eq!(features(&data.shard(client)), expected);
            assert_eq!(data.client_test(client).unwrap().len(), n_kept);
        }
    }
    // A list of sources without a rule of its own is one pool of rows.
    let pool = with(&list(&["s1/", "s2/", "s3/"]), "kind = \"iid\"");
    assert_eq!(load(&pool, &plan, dir.path()).unwrap().n_rows(0), 16);
    let world = World::from_toml(&by_source).unwrap();
    assert_eq!(World::from_toml(&toml::to_string(&world).unwrap()).unwrap(), world);

    // Two clients for three sites, and the other way round.
    for (world, expected) in [
        (&by_column, "3 values of the column but 2 clients; name one client in the plan for each"),
        (&by_source, "3 sources but 2 clients; name one client in the plan for each source"),
        (
            &by_folder,
            "3 sub-folders but 2 clients; name one client in the plan for each sub-folder",
        ),
    ] {
        let error = load(world, &self::plan(), dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let grouped = by_column
        .replace("column = \"site\"", "column = \"site\"\nvalues = [[\"s1\", \"s3\"], [\"s2\"]]");
    let data = load(&grouped, &self::plan(), dir.path()).unwrap();
    assert_eq!((data.n_rows(0), data.n_rows(1)), (32, 16));
    let one = with(&list(&["s1/"]), "kind = \"column\"\ncolumn = \"site\"");
    let error = load(&one, &plan, dir.path()).unwrap_err().to_string();
    assert!(error.contains("no column column \"site\""), "{error}");
    for (train, expected) in [
        ("train = []", "a list of no sources"),
        ("train = [{ kind = \"csv\", pth = 1 }]", "pth"),
        ("train = 1", "or a list of sources"),
    ] {
        let error = World::from_toml(&with(train, "kind = \"sources\"")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let many = with(&list(&["s1/", "s2/"]), "kind = \"folder\"");
    let error = load(&many, &plan, dir.path()).unwrap_err().to_string();
    assert!(error.contains("goes with one source"), "{error}");
    let error = load(&by_folder, &plan, &dir.path().join("s1")).unwrap_err().to_string();
    assert!(error.contains("has no sub-folder"), "{error}");
}

/// As `comity-sim split` writes them.
#[test]
fn folders_named_after_clients_are_theirs_in_any_order() {
    let dir = sites();
    for (from, to) in [("s1", "VN-c"), ("s2", "JP-b"), ("s3", "KR-a")] {
        std::fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
    }
    let world = with(&format!("train = {}", SITE.replace("DIR/", "")), "kind = \"folder\"");
    let data = load(&world, &three(), dir.path()).unwrap();
    assert_eq!([0, 1, 2].map(|client| data.n_rows(client)), [24, 16, 8]);
    std::fs::rename(dir.path().join("JP-b"), dir.path().join("JP-x")).unwrap();
    let error = load(&world, &three(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("JP-x is none of them"), "{error}");
}

#[test]
fn each_client_is_standardised_by_what_it_trains_on() {
    let dir = sites();
    let world = with(&list(&["s1/", "s2/", "s3/"]), "kind = \"sources\"")
        .replace("client_test", "standardise = \"per_client\"\nclient_test");
    let plan = three();
    let data = load(&world, &plan, dir.path()).unwrap();
    for client in 0..3 {
        let values = |data: &Dataset| {
            let all: Vec<usize> = (0..data.len()).collect();
            data.batch(&all, Normalise::IDENTITY).features
        };
        let train = values(&data.shard(client));
        let n = train.len() as f32;
        let mean = train.iter().sum::<f32>() / n;
        let variance = train.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / (n - 1.0);
        assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
        // What is kept is moved by the same amounts, so its own mean is not 0.
        let kept = values(&data.client_test(client).unwrap());
        assert!(kept.iter().all(|x| x.abs() < 3.0) && kept.iter().sum::<f32>().abs() > 1e-3);
    }
    let public =
        world.replace("standardise", &format!("test = {}\nstandardise", SITE.replace("DIR", "s1")));
    let error = load(&public, &plan, dir.path()).unwrap_err().to_string();
    assert!(error.contains("no statistics for the public data.test"), "{error}");
}

#[test]
fn a_baseline_trains_on_the_same_rows_as_the_federation() {
    let dir = sites();
    let plan = three();
    let world = with(&list(&["s1/", "s2/", "s3/"]), "kind = \"sources\"")
        .replace("client_test", "standardise = \"per_client\"\nclient_test");
    let federation = load(&world, &plan, dir.path()).unwrap();
    let run = |baseline: &str| {
        let world = World::from_toml(&format!("baseline = {baseline}\n{world}"))?;
        let data = world.load(&plan, dir.path())?;
        Ok((world.resolve(&plan, &data)?, data))
    };
    let run = |baseline: &str| -> Result<(Plan, FederationData), SimulationError> { run(baseline) };
    let (pooled, data) = run("\"pooled\"").unwrap();
    assert_eq!(pooled.cohort.clients[0].id.to_string(), "KR/pooled");
    assert_eq!((pooled.cohort.clients[0].records, data.n_rows(0), data.test.len()), (30, 48, 12));
    let expected: Vec<u32> = (0..3).flat_map(|c| features(&federation.shard(c))).collect();
    assert_eq!(features(&data.shard(0)), expected);
    let (alone, data) = run("{ alone = \"JP/b\" }").unwrap();
    assert_eq!(alone.cohort.clients[0], plan.cohort.clients[1]);
    assert_eq!(features(&data.shard(0)), features(&federation.shard(1)));
    assert_eq!(features(&data.test), features(&federation.client_test(1).unwrap()));
    let device = DeviceChoice::Cpu.open().unwrap();
    let simulation = Simulation::new(&alone, &data, &device);
    assert!(simulation.run(&mut |_| {}).unwrap().report.reason.is_none());
    let again = World::from_toml(&format!("baseline = \"pooled\"\n{world}")).unwrap();
    let error = again.load(&pooled, dir.path()).unwrap_err().to_string();
    assert!(error.contains("give the plan of the federation"), "{error}");
    let error = run("{ alone = \"JP/x\" }").unwrap_err().to_string();
    assert!(error.contains("no client JP/x"), "{error}");
}

/// Each client's own model after the run, and the score of the shared one beside it.
#[test]
fn clients_tune_the_last_model_by_themselves_and_keep_what_they_test_on_out_of_it() {
    let dir = folder(200);
    let tuned = WORLD.replace("[data]", "fine_tune = { epochs = 30 }\n[data]");
    let world = World::from_toml(&tuned).unwrap();
    let plan = plan();
    let data = world.load(&plan, dir.path()).unwrap();
    let device = DeviceChoice::Cpu.open().unwrap();
    let run = |fine_tune, n_threads| {
        let n_threads = std::num::NonZero::new(n_threads).unwrap();
        let simulation =
            Simulation { fine_tune, n_threads, ..Simulation::new(&plan, &data, &device) };
        simulation.run(&mut |_| {}).unwrap()
    };
    let epochs = world.fine_tune.map(|fine_tune| fine_tune.epochs);
    let (plain, tuned) = (run(None, 2), run(epochs, 2));
    assert_eq!((plain.report, plain.fine_tuned), (tuned.report, None));
    let fairness = tuned.fine_tuned.unwrap();
    assert_eq!(fairness.n_clients, 2);
    assert_eq!(run(epochs, 1).fine_tuned, Some(fairness));

    let mut nowhere = World { fine_tune: world.fine_tune, ..World::from_toml(WORLD).unwrap() };
    nowhere.data.client_test = None;
    let error = nowhere.load(&plan, dir.path()).unwrap_err().to_string();
    assert!(error.contains("add data.client_test"), "{error}");
}

/// The sample shows a key's other choices as comments, which have to be right too.
#[test]
fn every_choice_that_the_sample_of_a_world_shows_is_read() {
    let sample = include_str!("../../docs/samples/world.toml");
    let world = World::from_toml(sample).unwrap();
    assert!(world.conduct.validate(3).is_ok());
    let key_of = |line: &str| {
        let (key, _) = line.split_once(" = ")?;
        key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then(|| key.to_owned())
    };
    let lines: Vec<&str> = sample.lines().collect();
    let mut seen = BTreeSet::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(choice) = line.strip_prefix("# ") else { continue };
        let Some(key) = key_of(choice) else { continue };
        let text: Vec<&str> = lines
            .iter()
            .enumerate()
            .map(|(i, line)| match (i == at, key_of(line)) {
                (true, _) => choice,
                (false, Some(active)) if active == key => "",
                _ => line,
            })
            .collect();
        let other =
            World::from_toml(&text.join("\n")).unwrap_or_else(|error| panic!("{choice}: {error}"));
        assert_ne!(other, world, "{choice}");
        assert!(other.conduct.validate(3).is_ok(), "{choice}");
        seen.insert(key);
    }
    let expected =
        ["attackers", "baseline", "fine_tune", "partition", "records", "standardise", "train"];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}
