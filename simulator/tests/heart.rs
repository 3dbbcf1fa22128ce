//! Fed-Heart-Disease: records of real patients in four centres, which lie beside the checkout.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use comity_burn_models::DeviceChoice;
use comity_federation::{Plan, RunStatus};
use comity_simulator::{Simulation, World};

const PLAN: &str = include_str!("../../examples/heart/plan.toml");
const WORLD: &str = include_str!("../../examples/heart/world.toml");

/// Where the four files are.
fn data_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/heart-disease");
    assert!(
        dir.join("processed.va.data").is_file(),
        "{} lacks the data; comity-sim data fetch heart-disease --out shared/data/heart-disease, \
         beside the checkout",
        dir.display()
    );
    dir
}

fn world(text: &str) -> World {
    World::from_toml(text).unwrap()
}

#[test]
fn the_example_finds_the_published_numbers_of_rows() {
    let plan = Plan::from_toml(PLAN).unwrap();
    let whole = WORLD.replace("client_test = ", "# client_test = ");
    let (data, rows) = world(&whole).load_rows(&plan, &data_dir()).unwrap();
    let sizes: Vec<usize> = rows.iter().map(|rows| rows.train.len()).collect();
    assert_eq!((&sizes[..], data.len()), (&[303, 261, 46, 130][..], 740));
    assert_eq!(data.shape(), [13]);

    let world = world(WORLD);
    let data = world.load(&plan, &data_dir()).unwrap();
    let resolved = world.resolve(&plan, &data).unwrap();
    let records: Vec<u64> = resolved.cohort.clients.iter().map(|client| client.records).collect();
    assert_eq!((&records[..], data.test.len()), (&[199, 172, 30, 85][..], 254));
    let kept = [0, 1, 2, 3].map(|client| data.client_test(client).unwrap().len());
    assert_eq!(kept, [104, 89, 16, 45]);
}

/// Published: 0.685 for federated averaging, the mean over the centres; whoever guesses the commoner class of
/// all has 0.55.
#[test]
fn four_centres_learn_together_what_none_of_them_tells() {
    let plan = Plan::from_toml(PLAN).unwrap();
    let mut world = world(WORLD);
    let mut means = Vec::new();
    for seed in [1, 2] {
        world.seed = seed;
        let data = world.load(&plan, &data_dir()).unwrap();
        let plan = world.resolve(&Plan { seed, ..plan.clone() }, &data).unwrap();
        let device = DeviceChoice::Cpu.open().unwrap();
        let simulation = Simulation { seed, ..Simulation::new(&plan, &data, &device) };
        let result = simulation.run(&mut |_| {}).unwrap();
        assert_eq!(result.report.status, RunStatus::Finished);
        means.push(result.rounds.last().unwrap().fairness.unwrap().mean);
    }
    let mean = means.iter().sum::<f64>() / 2.0;
    assert!(mean > 0.68, "{means:?}");
}

/// All rows in one place, scored at each centre; the same rows as the federation's, so the same are kept.
#[test]
fn a_pooled_model_is_scored_at_every_centre() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/heart");
    let example = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let (plan, world) = (example("plan.toml"), example("world.toml"));
    let data = data_dir().to_str().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let json = |args: &[&str]| -> serde_json::Value {
        let output = Command::new(env!("CARGO_BIN_EXE_comity-sim"))
            .args(args)
            .args(["--world", &world, "--data", &data, "--world-seed", "3", "--json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let faster = ["--set", "training.optimizer.learning_rate=0.02"];
    let run = ["run", &plan, "--baseline", "pooled", "--out", out];
    let summary = json(&[&run[..], &faster].concat());
    let scores = json(&["evaluate", &format!("{out}/model.safetensors"), "--plan", &plan]);
    assert_eq!(scores[0]["accuracy"], summary["accuracy"]);
    let centres = scores[0]["clients"].as_array().unwrap();
    let names: Vec<&str> =
        centres.iter().map(|centre| centre["client"].as_str().unwrap()).collect();
    assert_eq!(names, ["US/cleveland", "HU/budapest", "CH/zurich-basel", "US/long-beach"]);
    let of = |key: &str| centres.iter().map(|c| c[key].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("records"), [104.0, 89.0, 16.0, 45.0]);
    let mean = of("accuracy").iter().sum::<f64>() / 4.0;
    assert!((scores[0]["clients_mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!(mean > 0.66, "{scores}");
}

fn fetch(args: &[&str], path: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_comity-sim"));
    command.args(["data", "fetch", "heart-disease"]).args(args);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.output().unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn fetched_files_are_the_published_ones_or_not_there() {
    let (out, mirror) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out_dir = out.path().to_str().unwrap();
    let url = |dir: &Path| format!("file://{}", dir.canonicalize().unwrap().display());
    let from = url(&data_dir());
    let names = || {
        let mut names: Vec<String> = std::fs::read_dir(out.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };

    // The second of four was altered on its way: the first stays, the second is not kept.
    for name in ["cleveland", "hungarian", "switzerland", "va"] {
        let name = format!("processed.{name}.data");
        let mut bytes = std::fs::read(data_dir().join(&name)).unwrap();
        if name.contains("hungarian") {
            bytes[0] ^= 1;
        }
        std::fs::write(mirror.path().join(name), bytes).unwrap();
    }
    let refused = error(&fetch(&["--out", out_dir, "--from", &url(mirror.path())], None));
    assert!(refused.contains("processed.hungarian.data has SHA-256"), "{refused}");
    assert!(refused.contains("hint: nothing was kept"), "{refused}");
    assert_eq!(names(), ["processed.cleveland.data"]);

    // A second call goes on from there, and a third has nothing to do, not even with curl.
    let output = fetch(&["--out", out_dir, "--from", &format!("{from}/"), "--json"], None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let fetched: Vec<bool> =
        files.as_array().unwrap().iter().map(|file| file["fetched"].as_bool().unwrap()).collect();
    assert_eq!(fetched, [false, true, true, true]);
    assert_eq!(names().len(), 4);
    let nowhere = mirror.path().join("no-programs");
    let again = fetch(&["--out", out_dir], Some(&nowhere));
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));

    // Without curl, from nowhere, from no address; and another file in the place is left alone.
    std::fs::remove_file(out.path().join("processed.va.data")).unwrap();
    let refused = error(&fetch(&["--out", out_dir], Some(&nowhere)));
    assert!(refused.contains("curl is not installed") && refused.contains("by hand"), "{refused}");
    let refused = error(&fetch(&["--out", out_dir, "--from", &url(out.path())], None));
    assert!(refused.contains("cannot be fetched") && refused.contains("--from URL"), "{refused}");
    let refused = error(&fetch(&["--out", out_dir, "--from", "ftp://example.org"], None));
    assert!(refused.contains("is no address"), "{refused}");
    std::fs::write(out.path().join("processed.va.data"), "mine").unwrap();
    let refused = error(&fetch(&["--out", out_dir, "--from", &from], None));
    assert!(refused.contains("another file than the one published"), "{refused}");
    assert_eq!(std::fs::read(out.path().join("processed.va.data")).unwrap(), b"mine");
    assert_eq!(names().len(), 4, "nothing half-written is left");
}
