//! The main job, whole: one coordinator and three clients on loopback train the example plan.
//!
//! `make demo` builds everything and runs this.  The test images are public, so each round's
//! model is scored here, by the operator's tooling; the coordinator never sees an image.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_federation::{ClientId, Plan, RunReport, RunStatus};
use comity_privacy::{FixedSchedule, LedgerEntry, Mechanism, Relation, epsilon};
use comity_tests::{Binaries, ClientSetup, Deployment, Finished};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

const PLAN: &str = "examples/fashion/plan.toml";
const WORLD: &str = "examples/fashion/world.toml";
/// Everything that the demo writes, made anew each time.
const OUT: &str = "target/demo";
/// How long clients may take to notice that the run is over.
const CLIENTS_END: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Summary {
    rounds: u32,
    accuracy: f64,
    accuracy_by_round: Vec<f64>,
    epsilon: BTreeMap<String, f64>,
    delta: f64,
    seconds: f64,
    model_sha256: String,
    run: String,
    plan: String,
    model: String,
    bytes_sent: BTreeMap<String, u64>,
    coordinator_memory_peak_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let text = fs::read_to_string(PLAN)
        .with_context(|| format!("{PLAN} cannot be read; run this from the project's folder"))?;
    let plan = Plan::from_toml(&text)?;
    let data = std::env::args().nth(1);
    let binaries = Binaries::find()?;
    let out = Path::new(OUT);
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("{OUT} cannot be made anew"))?;
    }

    eprintln!("splitting the training images by country …");
    let mut split = binaries.command("comity-sim");
    split.args(["split", "--plan", PLAN, "--world", WORLD, "--out"]).arg(out.join("data"));
    split.args(data_args(data.as_deref()));
    eprint!("{}", Finished::of(&mut split)?.success()?.stdout);

    eprintln!("starting one coordinator and {} clients over mTLS …", plan.cohort.clients.len());
    let mut deployment = Deployment::init(binaries.clone(), out, "demo")?;
    keep_all_models(&deployment, plan.rounds)?;
    deployment.serve()?;
    let started = Instant::now();
    let budget = plan.budget()?.map(|budget| (budget.epsilon.get(), budget.delta.get()));
    let delta = budget.map_or(0.0, |(_, delta)| delta);
    for named in &plan.cohort.clients {
        let folder = format!("../data/{}-{}", named.id.country(), named.id.institution());
        deployment.add_client(&ClientSetup {
            id: named.id.clone(),
            source: format!(
                "source = {{ kind = \"idx\", images = \"{folder}/images.idx\", labels = \"{folder}/labels.idx\" }}"
            ),
            records: named.records,
            budget,
            without_dp: budget.is_none(),
        })?;
        deployment.start_client(&named.id, 1)?;
    }
    let run = deployment.launch(Path::new(PLAN))?;
    eprintln!(
        "run {run}: follow it with `target/debug/comity-coordinator --dir {OUT}/coordinator run show {run}`"
    );
    let report = watch(&deployment, &run)?;
    let seconds = started.elapsed().as_secs_f64();
    deployment.wait_for_clients(CLIENTS_END)?;
    let memory = deployment.coordinator_memory_peak()?;

    eprintln!("scoring each round's model on the public test images …");
    let models = export(&deployment, &run, plan.rounds)?;
    deployment.stop_coordinator()?;
    let accuracy = score(&binaries, &models, data.as_deref())?;
    let ledgers = plan
        .cohort
        .clients
        .iter()
        .map(|named| Ok((named.id.clone(), spent_by_round(&deployment, &named.id, delta)?)))
        .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let model = out.join("model.safetensors");
    fs::copy(models.last().context("the run has no model")?, &model)?;

    print(&report, &accuracy, &ledgers);
    let summary = Summary {
        rounds: report.round,
        accuracy: *accuracy.last().context("the run has no round")?,
        accuracy_by_round: accuracy,
        epsilon: ledgers
            .iter()
            .map(|(client, spent)| {
                (client.country().to_string(), spent.last().copied().unwrap_or_default())
            })
            .collect(),
        delta,
        seconds,
        model_sha256: sha256(&model)?,
        run,
        plan: report.plan.to_string(),
        model: report.model.to_string(),
        bytes_sent: bytes_sent(&report),
        coordinator_memory_peak_bytes: memory,
    };
    fs::write(out.join("summary.json"), serde_json::to_string_pretty(&summary)? + "\n")?;
    println!(
        "accuracy {:.2} % on the public test images after {} rounds in {seconds:.0} s; coordinator's peak memory {} MB",
        100.0 * summary.accuracy,
        summary.rounds,
        memory / 1_000_000
    );
    println!("model   {} (sha256 {})", model.display(), summary.model_sha256);
    println!("summary {OUT}/summary.json");
    Ok(())
}

fn data_args(data: Option<&str>) -> Vec<&str> {
    data.map(|dir| vec!["--data", dir]).unwrap_or_default()
}

/// Follows the run to its end, with a bar.
fn watch(deployment: &Deployment, run: &str) -> anyhow::Result<RunReport> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{bar:30} round {pos}/{len} done, {elapsed} {msg}")
            .expect("the template is well-formed"),
    );
    bar.enable_steady_tick(Duration::from_millis(500));
    let mut watching = deployment.operator_piped(&["run", "watch", run, "--json"])?;
    let lines = BufReader::new(watching.stdout.take().expect("stdout is piped")).lines();
    let mut last: Option<RunReport> = None;
    for line in lines {
        let report: RunReport = serde_json::from_str(&line?)?;
        let n_done = report.history.iter().filter(|round| round.model.is_some()).count();
        bar.set_length(u64::from(report.rounds));
        bar.set_position(n_done as u64);
        if let Some(open) = report.history.last() {
            let here: Vec<String> =
                open.contributions.iter().map(|c| c.client.country().to_string()).collect();
            bar.set_message(format!("round {}: arrived {}", open.round, here.join(" ")));
            let before = last.as_ref().map_or(0, |last| {
                last.history.iter().filter(|round| round.model.is_some()).count()
            });
            if bar.is_hidden() && n_done > before {
                eprintln!("round {n_done}/{} done", report.rounds);
            }
        }
        last = Some(report);
    }
    watching.wait()?;
    bar.finish_and_clear();
    let report = last.context("the coordinator sent no report")?;
    ensure!(
        report.status == RunStatus::Finished,
        "the run is {}: {}; the logs lie in {OUT}",
        report.status.as_str(),
        report.reason.unwrap_or_default()
    );
    Ok(report)
}

/// The table at the end scores the model of every round, so the coordinator keeps them all.
fn keep_all_models(deployment: &Deployment, rounds: u32) -> anyhow::Result<()> {
    let path = deployment.coordinator_dir().join("coordinator.toml");
    let mut config: toml::Table = fs::read_to_string(&path)?.parse()?;
    let n = i64::from(rounds) + 1;
    let kept = ["models_kept", "models_kept_of_ended"];
    let kept = kept.map(|key| (key.to_owned(), toml::Value::Integer(n))).into_iter().collect();
    config.insert("storage".to_owned(), toml::Value::Table(kept));
    fs::write(&path, toml::to_string(&config)?)?;
    Ok(())
}

fn export(deployment: &Deployment, run: &str, rounds: u32) -> anyhow::Result<Vec<PathBuf>> {
    let dir = Path::new(OUT).join("models");
    fs::create_dir_all(&dir)?;
    (1..=rounds)
        .map(|round| {
            let path = dir.join(format!("round-{round:02}.safetensors"));
            let text = path.to_str().context("the path is not UTF-8")?;
            let export = ["model", "export", run, "--round", &round.to_string(), "--out", text];
            deployment.operator(&export)?.success()?;
            Ok(path)
        })
        .collect()
}

fn score(binaries: &Binaries, models: &[PathBuf], data: Option<&str>) -> anyhow::Result<Vec<f64>> {
    let mut command = binaries.command("comity-sim");
    command.arg("evaluate").args(models).args(["--plan", PLAN, "--world", WORLD, "--json"]);
    let scores = Finished::of(command.args(data_args(data)))?.success()?.json()?;
    let scores = scores.as_array().context("the scores are no list")?;
    scores.iter().map(|score| score["accuracy"].as_f64().context("no accuracy")).collect()
}

/// Epsilon after each round, from the client's own ledger.
fn spent_by_round(
    deployment: &Deployment,
    client: &ClientId,
    delta: f64,
) -> anyhow::Result<Vec<f64>> {
    let shown = deployment.client(client, &["ledger", "show", "--json"])?.success()?.json()?;
    let entries: Vec<LedgerEntry> = serde_json::from_value(shown["entries"].clone())?;
    let mut spent: Vec<Mechanism> = Vec::new();
    let mut by_round = Vec::new();
    for entry in entries {
        if let LedgerEntry::Reserved { mechanisms, .. } = entry {
            spent.extend(mechanisms);
            let so_far = FixedSchedule::declared(spent.clone());
            by_round.push(epsilon(&so_far, Relation::AddOrRemoveOne, delta).epsilon);
        }
    }
    Ok(by_round)
}

fn bytes_sent(report: &RunReport) -> BTreeMap<String, u64> {
    let mut bytes = BTreeMap::new();
    for contribution in report.history.iter().flat_map(|round| &round.contributions) {
        *bytes.entry(contribution.client.country().to_string()).or_default() += contribution.bytes;
    }
    bytes
}

fn print(report: &RunReport, accuracy: &[f64], ledgers: &BTreeMap<ClientId, Vec<f64>>) {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    let mut header = vec!["round".to_owned(), "accuracy".to_owned()];
    for client in ledgers.keys() {
        header.push(format!("{} ε", client.country()));
        header.push(format!("{} kB", client.country()));
    }
    header.extend(["seconds".to_owned(), "model".to_owned()]);
    table.set_header(header);
    for (round, accuracy) in report.history.iter().zip(accuracy) {
        let mut row = vec![round.round.to_string(), format!("{:.2} %", 100.0 * accuracy)];
        for (client, spent) in ledgers {
            let epsilon = spent.get(round.round as usize - 1).copied().unwrap_or(f64::NAN);
            let bytes = round.contributions.iter().find(|c| c.client == *client).map(|c| c.bytes);
            row.push(format!("{epsilon:.2}"));
            row.push(bytes.map(|b| format!("{:.1}", b as f64 / 1000.0)).unwrap_or_default());
        }
        let seconds = round.closed.map(|closed| closed.seconds_since(round.opened));
        row.push(seconds.map(|s| format!("{s:.1}")).unwrap_or_default());
        row.push(round.model.map(|model| model.short()).unwrap_or_default());
        table.add_row(row);
    }
    println!("{table}");
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..n]);
    }
}
