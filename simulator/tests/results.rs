//! What runs leave behind, as a person, a script and a browser meet it.

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tiny::tiny;

fn comity_sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_comity-sim")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn json(args: &[&str]) -> serde_json::Value {
    let output = comity_sim(args);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_leaves_a_folder_from_which_it_can_be_repeated() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, out, again) =
        (path("plan.toml"), path("world.toml"), path("out"), path("again"));
    let set = ["--set", "training.optimizer.learning_rate=0.25"];
    let first =
        json(&[&["run", &plan, "--world", &world, "--out", &out, "--json"], &set[..]].concat());
    let mut names: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "clients.parquet",
            "environment.json",
            "events.out.tfevents.comity",
            "model.safetensors",
            "partition.json",
            "plan.toml",
            "report.html",
            "rounds.csv",
            "rounds.parquet",
            "summary.json",
            "world.toml",
        ]
    );
    let rounds = fs::read_to_string(path("out/rounds.csv")).unwrap();
    assert_eq!(rounds.lines().count(), 3, "{rounds}");
    assert!(rounds.starts_with("round,accuracy,loss,seconds,clock_s,"), "{rounds}");
    // Paths may be relative, also to nothing.
    let mut beside = Command::new(env!("CARGO_BIN_EXE_comity-sim"));
    beside.args(["run", "plan.toml", "--world", "world.toml", "--out", "beside"]);
    let beside = beside.current_dir(dir.path()).output().unwrap();
    assert!(beside.status.success(), "{}", stderr(&beside));
    // What the folder holds is enough, from wherever it is used.
    let (plan_again, world_again) = (path("out/plan.toml"), path("out/world.toml"));
    let second = json(&["run", &plan_again, "--world", &world_again, "--out", &again, "--json"]);
    assert_eq!((&second["plan"], &second["model"]), (&first["plan"], &first["model"]));
    let models = ["out", "again"].map(|dir| fs::read(path(&format!("{dir}/model.safetensors"))));
    let [one, other] = models.map(Result::unwrap);
    assert!(one == other, "the same bits");
}

#[test]
fn a_folder_of_another_plan_is_refused_before_any_round() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, out) = (path("plan.toml"), path("world.toml"), path("out"));
    let run = ["run", &plan, "--world", &world, "--out", &out];
    assert!(comity_sim(&run).status.success());
    assert!(comity_sim(&run).status.success(), "the same run again replaces its own result");
    let model = fs::read(path("out/model.safetensors")).unwrap();
    let other = ["--set", "rounds=1"];
    let refused = comity_sim(&[&run[..], &other].concat());
    assert_eq!(refused.status.code(), Some(1));
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(stderr.contains("another plan") && stderr.contains("differs in rounds"), "{stderr}");
    assert!(stderr.contains("hint: ") && stderr.contains("--overwrite"), "{stderr}");
    assert!(!stderr.contains("accuracy"), "no round was begun: {stderr}");
    assert_eq!(fs::read(path("out/model.safetensors")).unwrap(), model, "nothing was touched");
    assert!(comity_sim(&[&run[..], &other, &["--overwrite"]].concat()).status.success());
    assert_eq!(fs::read_to_string(path("out/rounds.csv")).unwrap().lines().count(), 2);
}

/// An interrupted run is not waited for here; a checkpoint is all that it leaves (`tests/conduct.rs`).
#[test]
fn an_ended_run_is_not_resumed() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, out) = (path("plan.toml"), path("world.toml"), path("out"));
    let run = ["run", &plan, "--world", &world, "--out", &out, "--resume"];
    let first = comity_sim(&run);
    assert!(first.status.success(), "there is nothing to go on from: {}", stderr(&first));
    assert!(!dir.path().join("out/checkpoint").exists());
    let again = comity_sim(&run);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("has ended"), "{}", stderr(&again));
}

const LEARNING_RATES: &str = "training.optimizer.learning_rate=0.5,0.001";

#[test]
fn a_sweep_does_what_is_left_and_compares_over_seeds() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, out) = (path("plan.toml"), path("world.toml"), path("sweep"));
    let sweep = ["sweep", &plan, "--world", &world, "--out", &out, "--seeds", "0..2", "--json"];
    let sweep = [&sweep[..], &["--set", LEARNING_RATES]].concat();
    let comparison = json(&sweep);
    let groups = comparison["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    assert_eq!(groups[0]["name"], "learning_rate=0.5");
    assert_eq!(groups[0]["accuracy"]["n"], 3);
    assert_eq!(groups[0]["accuracy"]["mean"], 1.0);
    assert!(groups[1]["accuracy"]["half_width"].is_f64());
    let cell = dir.path().join("sweep/learning_rate=0.001,seed=1");
    let model = fs::read(cell.join("model.safetensors")).unwrap();
    let whole = fs::read_to_string(dir.path().join("sweep/comparison.html")).unwrap();
    assert!(whole.contains("learning_rate=0.001"));

    // As if the sweep had been killed in this cell.
    fs::remove_file(cell.join("summary.json")).unwrap();
    let again = comity_sim(&sweep);
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(stderr(&again).matches("has ended already").count(), 5, "{}", stderr(&again));
    assert_eq!(fs::read(cell.join("model.safetensors")).unwrap(), model, "the same bits");

    // A cell of another plan is not touched, and the others are compared.
    let refused = comity_sim(&[&sweep[..], &["--set", "purpose=Another."]].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("another plan"), "{}", stderr(&refused));

    let one = comity_sim(&["report", cell.to_str().unwrap()]);
    assert!(String::from_utf8(one.stdout).unwrap().ends_with("report.html\n"));
    let table = comity_sim(&["report", &out]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("learning_rate=0.5") && table.contains("100.00 ± 0.00 %"), "{table}");
    let nowhere = path("nowhere");
    let nothing = comity_sim(&["report", &nowhere]);
    assert!(stderr(&nothing).contains("nowhere"), "{}", stderr(&nothing));
}

/// No file may grow beyond a limit, which a program meets as it meets a full disk.
#[test]
fn a_sweep_stops_where_results_cannot_be_written_and_goes_on_later() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, out) = (path("plan.toml"), path("world.toml"), path("sweep"));
    let sweep = ["sweep", &plan, "--world", &world, "--out", &out, "--set", LEARNING_RATES];
    let limited = |n_blocks: u32| {
        let script = format!("trap '' XFSZ; ulimit -f {n_blocks}; exec \"$0\" \"$@\"");
        let binary = env!("CARGO_BIN_EXE_comity-sim");
        Command::new("sh").args(["-c", &script, binary]).args(sweep).output().unwrap()
    };
    // Eight blocks of 512 bytes: enough to begin, too few for rounds.parquet or the report.
    let full = limited(8);
    assert_eq!(full.status.code(), Some(1), "{}", stderr(&full));
    let said = stderr(&full);
    assert!(said.contains("stopped after 0 of 2 cells") && said.contains("make room"), "{said}");
    for entry in fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()) {
        assert!(!entry.join("summary.json").exists(), "{} has not ended", entry.display());
        let Ok(files) = fs::read_dir(&entry) else { continue };
        for file in files.map(|file| file.unwrap().file_name().into_string().unwrap()) {
            assert!(!file.ends_with(".partial"), "{file} is half-written");
        }
    }
    let later = comity_sim(&sweep);
    assert!(later.status.success(), "{}", stderr(&later));
    assert!(dir.path().join("sweep/learning_rate=0.001/summary.json").exists());
}

#[test]
fn shards_that_are_run_twice_at_once_are_a_sweep() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, store, out) =
        (path("plan.toml"), path("world.toml"), path("store"), path("collected"));
    let axes = ["--world", &world, "--set", LEARNING_RATES, "--seeds", "0..1"];
    let planned = ["shard", "plan", &plan, "--shards", "2", "--out", &store, "--json"];
    let planned = json(&[&planned[..], &axes].concat());
    assert_eq!(planned["cells"].as_array().unwrap().len(), 4);

    let run = |index: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_comity-sim"));
        command.args(["shard", "run", &store]).env("JOB_COMPLETION_INDEX", index);
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let at_once: Vec<_> = ["0", "0", "0"].map(run).into_iter().collect();
    for child in at_once {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let status = comity_sim(&["shard", "status", &store]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert_eq!(status, "2 of 4 cells are done\nshard 1: 0 of 2\n");
    let early = comity_sim(&["shard", "collect", &store, "--out", &out]);
    assert!(stderr(&early).contains("2 of 4 cells are not done yet"), "{}", stderr(&early));

    assert!(comity_sim(&["shard", "run", &store, "--index", "1"]).status.success());
    let again = comity_sim(&["shard", "run", &store, "--index", "1"]);
    assert_eq!(stderr(&again).matches("is in the store").count(), 2, "{}", stderr(&again));
    let comparison = json(&["shard", "collect", &store, "--out", &out, "--json"]);
    let swept = path("swept");
    let swept = json(&[&["sweep", &plan, "--out", &swept, "--json"], &axes[..]].concat());
    for group in 0..2 {
        for figure in ["name", "accuracy", "loss", "bytes"] {
            assert_eq!(
                comparison["groups"][group][figure], swept["groups"][group][figure],
                "{figure}"
            );
        }
    }
    let nowhere = path("nowhere");
    for (args, expected) in [
        (vec!["shard", "run", &store, "--index", "2"], "shard 2 of 2"),
        (vec!["shard", "run", &store], "--index I"),
        (vec!["shard", "run", &nowhere, "--index", "0"], "no such plan"),
        (vec!["shard", "status", &store, "--plan", "x"], "no such plan"),
    ] {
        let refused = comity_sim(&args);
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(expected), "{args:?}: {}", stderr(&refused));
    }
}

/// The page in a real browser, which finds no network: what it shows, and that it complains of nothing.
#[test]
fn a_report_opens_offline_in_a_browser_without_a_complaint() {
    let dir = tiny();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plan, world, out) = (path("plan.toml"), path("world.toml"), path("out"));
    let hostile = "purpose=<img src=https://example.org/x.png onerror=console.error(1)>";
    let run = ["run", &plan, "--world", &world, "--out", &out, "--set", hostile];
    let run = comity_sim(&run);
    assert!(run.status.success(), "{}", stderr(&run));
    let (dom, log) = opened(&dir.path().join("out/report.html"), dir.path());
    assert!(dom.contains("<h1>t</h1>") && dom.matches("<svg").count() >= 6, "{dom}");
    assert!(dom.contains("&lt;img src=https://example.org"), "{dom}");
    assert!(!log.contains("CONSOLE") && !log.contains("example.org"), "{log}");

    // The test can fail: a page that complains and asks is found out.
    let bad = dir.path().join("bad.html");
    fs::write(&bad, "<img src='http://example.org/x.png'><script>console.error('ouch')</script>")
        .unwrap();
    let (_, log) = opened(&bad, dir.path());
    assert!(log.contains("ouch") && log.contains("CONSOLE"), "{log}");
}

/// The document after its scripts, and what the browser logs.
fn opened(page: &Path, profile: &Path) -> (String, String) {
    let output = Command::new(browser())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"])
        .args(["--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.join("browser").display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    (String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output))
}

/// Chromium, wherever it is called so.
fn browser() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|candidate| candidate.exists())
        .expect("a browser is needed: apt-get install chromium, or .ci/setup.sh browser")
}
