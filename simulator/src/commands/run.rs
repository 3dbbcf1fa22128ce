//! `comity-sim run`: a plan from its first round to its last.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;

use clap::Args;
use comity_burn_models::DeviceChoice;
use comity_federation::{ClientId, Country, Plan, PrivacyTerms};
#[cfg(feature = "mpi")]
use comity_simulator::Mpi;
use comity_simulator::results::Summary;
use comity_simulator::results::folder::SUMMARY;
use comity_simulator::{
    NoiseMode, OneProcess, Progress, Ranks, RoundScore, SimulationError, SimulationResult,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::commands::job::{Done, Job};
use crate::commands::{WorldArgs, read_plan_with};
use crate::output::{self, Hint};

/// Before a key of the world.
pub(crate) const WORLD_PREFIX: &str = "world.";
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
  comity-sim run plan.toml --world world.toml --out target/sim --resume
  comity-sim run plan.toml --world world.toml --json | jq .accuracy")]
pub(crate) struct Run {
    /// Plan of the run.
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    #[command(flatten)]
    world: WorldArgs,
    /// Set a key of the plan, by its dotted path, or with `world.` before it one of the world; may be given
    /// again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder for the results: tables, model, report.html; refused if it holds another plan's or world's.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace another plan's or world's result in the folder.
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// Go on with an interrupted run in the folder, after its last whole round.
    #[arg(long, requires = "out", conflicts_with = "overwrite")]
    resume: bool,
    /// How many cores train; the result does not depend on it. All of them if not given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Device that trains and scores.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Draw noise and batches from the operating system, by the exact mechanisms, as deployed.
    #[arg(long)]
    exact_noise: bool,
    /// Share the work with the other processes that mpirun started.
    #[cfg(feature = "mpi")]
    #[arg(long, conflicts_with = "resume")]
    mpi: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        if let Some(out) = self.out.as_deref().filter(|_| self.resume)
            && out.join(SUMMARY).exists()
        {
            let error = anyhow::anyhow!("the run in {} has ended", out.display());
            let advice = "look at its report.html, or run it again without --resume";
            return Err(Hint::attach(error, advice));
        }
        let of_world = |set: &&String| set.trim_start().starts_with(WORLD_PREFIX);
        let (of_world, of_plan): (Vec<&String>, Vec<&String>) = self.set.iter().partition(of_world);
        let of_plan: Vec<String> = of_plan.into_iter().cloned().collect();
        let of_world: Vec<String> = of_world
            .into_iter()
            .map(|set| set.trim_start()[WORLD_PREFIX.len()..].to_owned())
            .collect();
        let plan = read_plan_with(&self.plan, &of_plan)?;
        let world = self.world.read_absolute(&of_world)?;
        let device = self.device.open()?;
        #[cfg(feature = "mpi")]
        let mpi = self.mpi.then(Mpi::join).transpose()?;
        #[cfg(feature = "mpi")]
        let ranks: &dyn Ranks = mpi.as_ref().map_or(&OneProcess, |mpi| mpi);
        #[cfg(not(feature = "mpi"))]
        let ranks: &dyn Ranks = &OneProcess;
        let job = Job {
            plan: &plan,
            world: &world,
            device_name: &self.device,
            device: &device,
            noise: if self.exact_noise { NoiseMode::Exact } else { NoiseMode::Seeded },
            // The first process writes for all.
            out: self.out.as_deref().filter(|_| ranks.rank() == 0),
            overwrite: self.overwrite,
            resume: self.resume,
            n_threads: self.threads,
            ranks,
        };
        let is_first = ranks.rank() == 0;
        let mut display = is_first.then(|| Display::new(&plan));
        let done = job.run(&mut |progress| {
            if let Some(display) = &mut display {
                display.show(&progress);
            }
        });
        if let Some(display) = display {
            display.close();
        }
        let Done { plan, result, summary } = done.map_err(|error| match (&error, &self.out) {
            (SimulationError::Interrupted, Some(out)) => Hint::attach(
                error.into(),
                format!("it goes on with --out {} --resume", out.display()),
            ),
            _ => error.into(),
        })?;
        if !is_first {
            return Ok(());
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
fn report(plan: &Plan, result: &SimulationResult, summary: &Summary) -> String {
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
    if let Some(tuned) = &result.fine_tuned {
        let before = result.rounds.last().and_then(|score| score.fairness);
        text += &format!(
            "\nat the clients, on what each keeps for testing: {}after fine-tuning mean {:.2} %, lowest {:.2} %",
            before.map_or_else(String::new, |b| format!("mean {:.2} %; ", 100.0 * b.mean)),
            100.0 * tuned.mean,
            100.0 * tuned.min,
        );
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
