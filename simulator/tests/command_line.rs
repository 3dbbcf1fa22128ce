//! The binary as a person or a script meets it.

mod tiny;

use std::process::{Command, Output};

use tiny::tiny;

const PLAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/fashion/plan.toml");
const WORLD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/fashion/world.toml");

fn comity_sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_comity-sim")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> serde_json::Value {
    let output = comity_sim(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn privacy_epsilon_prints_every_bound() {
    let at = |q| {
        let args = ["--sigma", "1", "--steps", "1000", "--delta", "1e-5", "--json"];
        json(&[&["privacy", "epsilon", "--q", q], &args[..]].concat())
    };
    // dp-accounting's RDP gives 2.1014 (shared/reference/accounting_reference.csv).
    let sampled = at("0.01");
    assert!((sampled["rdp_epsilon"].as_f64().unwrap() - 2.1014).abs() < 0.01, "{sampled}");
    assert!((sampled["epsilon"].as_f64().unwrap() - 1.8282).abs() < 0.001, "{sampled}");
    assert_eq!(sampled["bound"], "pld");
    assert!((sampled["replace_one"]["epsilon"].as_f64().unwrap() - 2.8434).abs() < 0.001);
    let apart = ["--run", "0.01,1,400", "--run", "0.01,1,600", "--delta", "1e-5", "--json"];
    let together = json(&[&["privacy", "epsilon"], &apart[..]].concat());
    assert_eq!(together["epsilon"], sampled["epsilon"]);
    assert!(sampled["exact_gaussian_epsilon"].is_null());
    let unsampled = at("1");
    assert_eq!(unsampled["bound"], "exact_gaussian");
    assert!(unsampled["epsilon"].as_f64() < unsampled["rdp_epsilon"].as_f64(), "{unsampled}");
}

#[test]
fn privacy_calibrate_meets_its_budget() {
    let cost = json(&[
        "privacy",
        "calibrate",
        "--epsilon",
        "3",
        "--delta",
        "1e-5",
        "--q",
        "0.01",
        "--steps",
        "1000",
        "--json",
    ]);
    let epsilon = cost["epsilon"].as_f64().unwrap();
    assert!(epsilon <= 3.0 && epsilon > 2.99, "{cost}");
}

#[test]
fn privacy_plan_lists_every_client() {
    let costs = json(&["privacy", "plan", PLAN, "--json"]);
    let clients: Vec<_> = costs.as_array().unwrap().iter().map(|cost| &cost["client"]).collect();
    assert_eq!(clients, ["KR/seoul-lab", "JP/tokyo-lab", "VN/hanoi-lab"]);
    let text = comity_sim(&["privacy", "plan", PLAN]);
    assert!(String::from_utf8(text.stdout).unwrap().contains("VN/hanoi-lab"));
}

#[test]
fn bad_usage_exits_with_2_and_a_failure_with_1() {
    assert_eq!(comity_sim(&["privacy", "epsilon", "--q", "x"]).status.code(), Some(2));
    assert_eq!(comity_sim(&["fly"]).status.code(), Some(2));
    let output = comity_sim(&["privacy", "plan", "nowhere.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: ") && stderr.contains("nowhere.toml"), "{stderr}");
    assert!(stderr.contains("\nhint: "), "{stderr}");
}

#[test]
fn missing_data_name_the_package_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = comity_sim(&["run", PLAN, "--world", WORLD, "--data", path]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("dataset-fashion-mnist") && stderr.contains("--data DIR"), "{stderr}");
}

/// Whole way on small files: split a world, run it, score what it wrote.
#[test]
fn split_run_and_evaluate_agree() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, out) = (path("plan.toml"), path("world.toml"), path("out"));
    let summary = json(&["run", &plan, "--world", &world, "--out", &out, "--json"]);
    assert_eq!(summary["status"], "finished");
    assert_eq!(summary["accuracy"], 1.0);
    assert!(summary["epsilon"]["KR"].is_null());
    let written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("out/summary.json")).unwrap()).unwrap();
    assert_eq!(written, summary);
    let model = path("out/model.safetensors");
    let scores = json(&["evaluate", &model, &model, "--plan", &plan, "--world", &world, "--json"]);
    assert_eq!(scores.as_array().unwrap().len(), 2);
    assert_eq!(scores[1]["model"], summary["model"]);
    assert_eq!(scores[1]["accuracy"], summary["accuracy"]);
    let set = ["--set", "rounds=1", "--set", "model.layers.0.oui=3"];
    let one = json(&[&["run", &plan, "--world", &world, "--json"], &set[..2]].concat());
    assert_eq!(one["rounds"], 1);
    let refused = comity_sim(&[&["run", &plan, "--world", &world], &set[..]].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("model.layers.0.out"));
    let table = comity_sim(&["run", &plan, "--world", &world]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("no differential privacy") && table.contains("100.00 %"), "{table}");
}

#[test]
fn split_writes_each_shard_for_a_client_to_serve() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    // Twelve pictures of 28 x 28, two of each of six classes, as IDX.
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, 12, 0, 0, 0, 28, 0, 0, 0, 28];
    images.extend((0..12 * 28 * 28).map(|i| (i % 251) as u8));
    let mut labels = vec![0, 0, 8, 1, 0, 0, 0, 12];
    labels.extend((0..12).map(|i| i / 2));
    std::fs::write(path("i"), images).unwrap();
    std::fs::write(path("l"), labels).unwrap();
    std::fs::write(
        path("world.toml"),
        "seed = 1\n[data]\ntrain = { kind = \"idx\", images = \"i\", labels = \"l\" }\n\
         test = { kind = \"idx\", images = \"i\", labels = \"l\" }\n[partition]\nkind = \"iid\"\n",
    )
    .unwrap();
    let (world, out) = (path("world.toml"), path("out"));
    let shards = json(&["split", "--plan", PLAN, "--world", &world, "--out", &out, "--json"]);
    for (shard, folder) in
        shards.as_array().unwrap().iter().zip(["KR-seoul-lab", "JP-tokyo-lab", "VN-hanoi-lab"])
    {
        assert_eq!(shard["records"], 4);
        for (name, bytes) in [("images.idx", 16 + 4 * 28 * 28), ("labels.idx", 8 + 4)] {
            let file = dir.path().join("out").join(folder).join(name);
            assert_eq!(std::fs::metadata(file).unwrap().len(), bytes);
        }
    }
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3, "nothing half-written is left");
}
