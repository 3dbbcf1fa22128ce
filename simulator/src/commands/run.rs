//! `comity-sim run`: a plan from its first round to its last.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use comity_burn_models::{DeviceChoice, write_safetensors};
use comity_federation::{
    ClientId, Country, ModelDigest, Plan, PlanDigest, PrivacyTerms, RunStatus,
};
use comity_privacy::{Estimate, PrivacyUnit};
use comity_simulator::{NoiseMode, Progress, RoundScore, Simulation, SimulationResult};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::commands::{WorldArgs, read_plan_with};
use crate::output;

/// Above this many countries the table shows the largest ε and the sum of bytes only.
const N_COUNTRIES_IN_TABLE_MAX: usize = 5;

/// Run a plan over a world's data, round by round.
///
/// Prints for every round the accuracy and loss on the world's public test set, and for every
/// country the ε that its ledgers have debited so far and the bytes that it sent.
///
/// Noise and batches are seeded by the world, so that the same plan and world give the same model
/// digest. Such noise can be subtracted by whoever knows the seed: a simulated model is NOT
/// private. With --exact-noise they come from the operating system, as deployed, and differ from
/// run to run.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  comity-sim run examples/fashion/plan.toml --world examples/fashion/world.toml
  comity-sim run plan.toml --world world.toml --data ~/fashion-mnist --out target/sim
  comity-sim run plan.toml --world world.toml --set privacy.epsilon=2 --set seed=3
  comity-sim run plan.toml --world world.toml --json | jq .accuracy")]
pub(crate) struct Run {
    /// Plan of the run.
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    #[command(flatten)]
    world: WorldArgs,
    /// Set a key of the plan, by its dotted path; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder for summary.json and model.safetensors, which replace older ones.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Device that trains and scores.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Draw noise and batches from the operating system, by the exact mechanisms, as deployed.
    #[arg(long)]
    exact_noise: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// What `summary.json` holds; the first keys are those of the demo's.
#[derive(Serialize)]
struct Summary<'a> {
    rounds: usize,
    accuracy: Option<f64>,
    /// By country: the largest among its clients; `null` without DP.
    epsilon: BTreeMap<Country, Option<f64>>,
    delta: Option<f64>,
    /// Whom ε protects; `null` without DP.
    unit: Option<PrivacyUnit>,
    seconds: f64,
    /// SHA-256 of the bytes of model.safetensors; `null` without --out.
    model_sha256: Option<String>,
    status: RunStatus,
    reason: Option<String>,
    noise: &'static str,
    plan: PlanDigest,
    model: ModelDigest,
    /// What the clients' statistics say together, in the order of the plan's queries; noisy.
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics: Option<&'a [Estimate]>,
    history: &'a [RoundScore],
}

impl Run {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let plan = read_plan_with(&self.plan, &self.set)?;
        let (world, base_dir) = self.world.read()?;
        let device = self.device.open()?;
        if let Some(out) = &self.out {
            // Before the work, so that a folder that cannot be made costs nothing.
            output::make_dir(out)?;
        }
        let data = world.load(&plan, &base_dir)?;
        let plan = world.resolve(&plan, &data)?;
        let noise = if self.exact_noise { NoiseMode::Exact } else { NoiseMode::Seeded };
        let simulation = Simulation {
            seed: world.seed,
            noise,
            conduct: world.conduct.clone(),
            ..Simulation::new(&plan, &data, &device)
        };
        let mut display = Display::new(&plan);
        let result = simulation.run(&mut |progress| display.show(&progress));
        display.close();
        let result = result?;

        let model_sha256 = match &self.out {
            Some(out) => Some(write_model(&out.join("model.safetensors"), &plan, &result)?),
            None => None,
        };
        let noise = match plan.privacy {
            PrivacyTerms::DpSgd { .. } | PrivacyTerms::DpFedavg { .. } => noise.label(),
            PrivacyTerms::None => "no differential privacy",
        };
        let summary = Summary {
            rounds: result.rounds.len(),
            accuracy: result.rounds.last().map(|score| score.accuracy),
            epsilon: result.rounds.last().map(|score| score.epsilon.clone()).unwrap_or_default(),
            unit: plan.unit(),
            delta: plan.budget()?.map(|budget| budget.delta.get()),
            seconds: started.elapsed().as_secs_f64(),
            model_sha256,
            status: result.report.status,
            reason: result.report.reason.clone(),
            noise,
            plan: result.report.plan,
            model: result.report.model,
            statistics: result.report.statistics.as_deref(),
            history: &result.rounds,
        };
        if let Some(out) = &self.out {
            output::write_whole(&out.join("summary.json"), output::json(&summary)?.as_bytes())?;
            if let Some(statement) = &result.institutions {
                let text = output::json(statement)?;
                output::write_whole(&out.join("statement.json"), text.as_bytes())?;
            }
        }
        if self.json {
            output::print_json(&summary)?;
        } else {
            output::print(&report(&plan, &result, &summary))?;
        }
        match result.report.reason {
            Some(reason) => Err(anyhow::anyhow!("the run ended early: {reason}")),
            None => Ok(()),
        }
    }
}

/// Writes the last model, and returns the SHA-256 of the file.
fn write_model(path: &Path, plan: &Plan, result: &SimulationResult) -> anyhow::Result<String> {
    let metadata = BTreeMap::from([
        ("comity.run".to_owned(), result.report.run.to_string()),
        ("comity.plan".to_owned(), result.report.plan.to_string()),
        ("comity.model".to_owned(), result.report.model.to_string()),
    ]);
    write_safetensors(path, &plan.model_manifest()?, &result.model, &metadata)?;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Live progress on stderr; where stderr is not a terminal, a line a round.
struct Display {
    bar: ProgressBar,
    n_rounds: u32,
    steps_done: BTreeMap<ClientId, u32>,
}

impl Display {
    fn new(plan: &Plan) -> Self {
        let clients = &plan.cohort.clients;
        let n_steps: u64 = clients.iter().map(|named| u64::from(plan.steps_per_round(named))).sum();
        let n_steps = match plan.privacy {
            PrivacyTerms::DpFedavg { cohort_expected, .. } => {
                n_steps * u64::from(cohort_expected) / clients.len() as u64
            }
            _ => n_steps,
        };
        let bar = ProgressBar::new(n_steps);
        let style = "round {prefix} [{bar:30}] {pos}/{len} local steps, {elapsed} in all";
        bar.set_style(
            ProgressStyle::with_template(style)
                .expect("the template is well formed")
                .progress_chars("=> "),
        );
        let display = Self { bar, n_rounds: plan.rounds, steps_done: BTreeMap::new() };
        display.open_round(1);
        display
    }

    fn open_round(&self, round: u32) {
        self.bar.set_prefix(format!("{}/{}", round.min(self.n_rounds), self.n_rounds));
        self.bar.set_position(0);
    }

    fn show(&mut self, progress: &Progress<'_>) {
        match progress {
            Progress::Step { client, step, .. } => {
                self.steps_done.insert((*client).clone(), *step);
                self.bar.set_position(self.steps_done.values().map(|s| u64::from(*s)).sum());
            }
            Progress::Resumed { rounds } => {
                let done = rounds.len() as u32;
                self.say(&format!("going on after round {done}"));
                self.open_round(done + 1);
            }
            Progress::Round { score, .. } => {
                let line = format!(
                    "round {:>3}  accuracy {:.2} %  loss {:.3}  {:.1} s  model {}",
                    score.round,
                    100.0 * score.accuracy,
                    score.loss,
                    score.seconds,
                    score.model.short(),
                );
                self.say(&line);
                self.steps_done.clear();
                self.open_round(score.round + 1);
            }
        }
    }

    fn say(&self, line: &str) {
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }

    fn close(&self) {
        self.bar.finish_and_clear();
    }
}

/// The table of rounds and what stands around it.
fn report(plan: &Plan, result: &SimulationResult, summary: &Summary<'_>) -> String {
    let countries: Vec<Country> = summary.epsilon.keys().copied().collect();
    let by_country = countries.len() <= N_COUNTRIES_IN_TABLE_MAX;
    let mut header: Vec<String> = ["round", "accuracy", "loss"].map(str::to_owned).to_vec();
    if by_country {
        for country in &countries {
            header.extend([format!("{country} ε"), format!("{country} sent")]);
        }
    } else {
        header.extend(["largest ε".to_owned(), "sent".to_owned()]);
    }
    header.extend(["seconds".to_owned(), "model".to_owned()]);
    let rows = result.rounds.iter().map(|score| row(score, &countries, by_country)).collect();
    let mut text =
        format!("{}: {} clients, {}\n", plan.name, plan.cohort.clients.len(), summary.noise);
    for estimate in result.report.statistics.iter().flatten() {
        text += &format!("asked of all clients: {estimate}\n");
    }
    if !result.rounds.is_empty() {
        text += &output::table(header, rows);
    }
    text += &format!("{} after {:.1} s", summary.status.as_str(), summary.seconds);
    if let (Some(accuracy), Some(score)) = (summary.accuracy, result.rounds.last()) {
        text += &format!(", accuracy {:.2} %, model {}", 100.0 * accuracy, score.model);
    }
    match plan.privacy {
        PrivacyTerms::None => {}
        PrivacyTerms::DpSgd { unit, epsilon, delta, .. } => {
            text += &format!("\nprivacy by the plan: ε ≤ {epsilon}, δ = {delta:e} for each {unit}");
        }
        PrivacyTerms::DpFedavg { epsilon, delta, cohort_expected, .. } => {
            text += &format!(
                "\nprivacy by the plan: ε ≤ {epsilon}, δ = {delta:e} for each institution towards \
                 those who see the models; {cohort_expected} of {} are drawn for a round, in \
                 expectation, and the simulated coordinator sees their changes in clear",
                plan.cohort.clients.len()
            );
        }
    }
    text + "\n"
}

fn row(score: &RoundScore, countries: &[Country], by_country: bool) -> Vec<String> {
    let RoundScore { epsilon, bytes, .. } = score;
    let mut cells = vec![
        score.round.to_string(),
        format!("{:.2} %", 100.0 * score.accuracy),
        format!("{:.3}", score.loss),
    ];
    if by_country {
        for country in countries {
            cells.push(output::epsilon_text(epsilon[country]));
            cells.push(output::bytes_text(bytes.get(country).copied().unwrap_or(0)));
        }
    } else {
        cells
            .push(output::epsilon_text(epsilon.values().copied().flatten().max_by(f64::total_cmp)));
        cells.push(output::bytes_text(bytes.values().sum()));
    }
    cells.extend([format!("{:.1}", score.seconds), score.model.short()]);
    cells
}
