//! `comity-sim sweep`: every combination of settings, for every seed, each in a folder of its own.

use std::io::ErrorKind;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::Args;
use comity_burn_models::{Device, DeviceChoice};
use comity_simulator::results::Comparison;
use comity_simulator::results::folder::{SUMMARY, holds_result_of, write_whole};
use comity_simulator::{NoiseMode, OneProcess, Progress, RunFolder, SimulationError};
use serde::Serialize;

use crate::commands::cells::{Axes, Cell};
use crate::commands::job::Job;
use crate::commands::{WorldArgs, read_text, report};
use crate::output::{self, Hint};

/// Run every combination of settings, for every seed, and compare them.
///
/// Each combination is a cell, and each cell a folder in OUT named by its settings, as comity-sim run
/// would write it. A cell that has ended is skipped and one that was interrupted goes on where it was, so
/// the same command again does what is left. What fails is recorded in OUT/sweep.json and the other cells
/// go on, except where results cannot be written: then the sweep stops. At the end
/// OUT/comparison.html compares all cells, as comity-sim report OUT does.
///
/// Seeds set the plan's seed (the first model) and the world's (partition, noise, batches, faults) at once.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  comity-sim sweep plan.toml --world world.toml --seeds 0..4 --out target/sweep \\
      --set training.optimizer.learning_rate=0.1,0.01
  comity-sim sweep plan.toml --world world.toml --seeds 1,2,3 --out target/sweep \\
      --set 'aggregation.strategy=fedavg,{ trimmed_mean = { trim = 1 } }' --set world.partition.alpha=0.1,1
  comity-sim sweep plan.toml --world world.toml --seeds 0..4 --out target/sweep --json \\
      | jq '.groups[] | {name, accuracy}'")]
pub(crate) struct Sweep {
    /// Plan of the runs.
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    axes: Axes,
    /// Folder for the cells' folders.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many cores train; the results do not depend on it. All of them if not given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Device that trains and scores.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Print the comparison as JSON.
    #[arg(long)]
    json: bool,
}

/// How a cell stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Its run has ended; the comparison says how.
    Ended,
    /// Its run could not be begun, or not be brought to its end.
    Failed {
        /// Why.
        reason: String,
    },
    /// Its turn has not come.
    Waiting,
}

#[derive(Serialize)]
struct Line<'a> {
    cell: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

impl Sweep {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        let plan = read_text(&self.plan, "plan", "examples/fashion/plan.toml")?;
        let mut cells = self.axes.cells(&plan, &self.world.text()?)?;
        for cell in &mut cells {
            cell.world = self.world.absolute(cell.world.clone())?;
        }
        let device = self.device.open()?;
        output::make_dir(&self.out)?;
        let mut outcomes = vec![Outcome::Waiting; cells.len()];
        let mut stopped = None;
        for (index, cell) in cells.iter().enumerate() {
            let dir = self.out.join(&cell.name);
            let label = format!("cell {}/{} {}", index + 1, cells.len(), cell.name);
            let how =
                Runner { device_name: &self.device, device: &device, n_threads: self.threads };
            outcomes[index] = match how.bring_to_its_end(cell, &dir, &label) {
                Ok(()) => Outcome::Ended,
                Err(error) => {
                    let reason = error.to_string();
                    eprintln!("{label}: {reason}");
                    if cannot_write(&error) || matches!(error, SimulationError::Interrupted) {
                        stopped = Some(error);
                    }
                    Outcome::Failed { reason }
                }
            };
            if let Err(error) = self.record(&cells, &outcomes) {
                stopped = stopped.or(Some(error));
            }
            if stopped.is_some() {
                break;
            }
        }
        if let Some(error) = stopped {
            let n_ended = outcomes.iter().filter(|o| **o == Outcome::Ended).count();
            let advice = "what has ended is whole, and the same command goes on; make room first if that is what is missing";
            let error = anyhow::Error::new(error)
                .context(format!("stopped after {n_ended} of {} cells", cells.len()));
            return Err(Hint::attach(error, advice));
        }
        let mut folders = Vec::new();
        for (cell, outcome) in cells.iter().zip(&outcomes) {
            if *outcome == Outcome::Ended {
                folders.push(RunFolder::read(&self.out.join(&cell.name))?);
            }
        }
        let title = format!("{} · sweep of {} cells", cells[0].plan.name, cells.len());
        let page = self.out.join("comparison.html");
        report::show(&Comparison::of(&folders), &title, Some(&page), self.json)?;
        let n_failed = outcomes.iter().filter(|o| **o != Outcome::Ended).count();
        if n_failed > 0 {
            let error = anyhow::anyhow!("{n_failed} of {} cells failed", cells.len());
            let advice = format!("{} says why", self.out.join("sweep.json").display());
            return Err(Hint::attach(error, advice));
        }
        Ok(())
    }

    fn record(&self, cells: &[Cell], outcomes: &[Outcome]) -> Result<(), SimulationError> {
        let lines: Vec<Line<'_>> = cells
            .iter()
            .zip(outcomes)
            .map(|(cell, outcome)| Line { cell: &cell.name, outcome })
            .collect();
        let json = serde_json::to_string_pretty(&lines).expect("texts are JSON") + "\n";
        write_whole(&self.out.join("sweep.json"), json.as_bytes())
    }
}

/// On what cells are run.
pub(crate) struct Runner<'a> {
    pub(crate) device_name: &'a DeviceChoice,
    pub(crate) device: &'a Device,
    pub(crate) n_threads: Option<NonZero<usize>>,
}

impl Runner<'_> {
    /// Runs `cell` into `dir` unless it has ended there, from where it was interrupted if it was.
    pub(crate) fn bring_to_its_end(
        &self,
        cell: &Cell,
        dir: &Path,
        label: &str,
    ) -> Result<(), SimulationError> {
        if holds_result_of(dir, &cell.plan, &cell.world)? && dir.join(SUMMARY).exists() {
            eprintln!("{label}: has ended already");
            return Ok(());
        }
        let job = Job {
            plan: &cell.plan,
            world: &cell.world,
            device_name: self.device_name,
            device: self.device,
            noise: NoiseMode::Seeded,
            n_threads: self.n_threads,
            out: Some(dir),
            overwrite: false,
            resume: true,
            ranks: &OneProcess,
        };
        let done = job.run(&mut |progress| {
            if let Progress::Resumed { rounds } = progress {
                eprintln!("{label}: going on after round {}", rounds.len());
            }
        })?;
        let accuracy = done.summary.accuracy.map_or_else(
            || done.summary.reason.clone().unwrap_or_default(),
            |accuracy| format!("accuracy {:.2} %", 100.0 * accuracy),
        );
        eprintln!("{label}: {accuracy}, {:.1} s", done.summary.seconds);
        Ok(())
    }
}

/// Whether `error` would meet every other cell too: its results have no place.
fn cannot_write(error: &SimulationError) -> bool {
    let (SimulationError::File { error, .. } | SimulationError::Io(error)) = error else {
        return false;
    };
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
    )
}
