//! One run from its settings to its folder, as `run`, `sweep` and `shard` do it.

use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::interrupt::is_interrupted;
use comity_burn_models::{Device, DeviceChoice};
use comity_federation::Plan;
use comity_simulator::results::folder::holds_result_of;
use comity_simulator::results::{Environment, ResultsWriter, Summary, noise_label};
use comity_simulator::{
    NoiseMode, Progress, Ranks, Simulation, SimulationError, SimulationResult, World,
};

/// Where a run's folder notes how it goes on.
pub(crate) const CHECKPOINT: &str = "checkpoint";

/// What is run, on what, and where its results go.
pub(crate) struct Job<'a> {
    /// As it is written; the world may count the clients' records.
    pub(crate) plan: &'a Plan,
    /// Its data folder is an absolute path, so that the result can be repeated from wherever it lies.
    pub(crate) world: &'a World,
    pub(crate) device_name: &'a DeviceChoice,
    pub(crate) device: &'a Device,
    pub(crate) noise: NoiseMode,
    /// On how many cores; `None`: all.
    pub(crate) n_threads: Option<NonZero<usize>>,
    /// Folder for the results.
    pub(crate) out: Option<&'a Path>,
    /// Whether another plan's or world's result there is replaced.
    pub(crate) overwrite: bool,
    /// Whether it goes on from the checkpoint in that folder, if there is one.
    pub(crate) resume: bool,
    /// The processes that share the work; checkpoints are of one process.
    pub(crate) ranks: &'a dyn Ranks,
}

/// A run that has ended, as planned or not.
pub(crate) struct Done {
    /// As it was run.
    pub(crate) plan: Plan,
    pub(crate) result: SimulationResult,
    pub(crate) summary: Summary,
}

impl Job<'_> {
    /// Runs the plan to its end.
    ///
    /// # Errors
    /// [`SimulationError`] if it cannot be run at all, or its results not be written; a folder without
    /// `summary.json` then says that the run did not end.
    pub(crate) fn run(
        &self,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Done, SimulationError> {
        let started = Instant::now();
        let Self { world, noise, .. } = *self;
        if let Some(out) = self.out.filter(|_| !self.overwrite) {
            // Before the work, so that a folder that cannot be had costs nothing.
            holds_result_of(out, self.plan, world)?;
        }
        let base_dir = world.data.dir.as_deref().unwrap_or_else(|| Path::new(""));
        let data = world.load(self.plan, base_dir)?;
        let plan = world.resolve(self.plan, &data)?;
        let stop = AtomicBool::new(false);
        let checkpoint =
            self.out.filter(|_| self.ranks.size() == 1).map(|out| out.join(CHECKPOINT));
        let defaults = Simulation::new(&plan, &data, self.device);
        let simulation = Simulation {
            seed: world.seed,
            noise,
            conduct: world.conduct.clone(),
            fine_tune: world.fine_tune.map(|fine_tune| fine_tune.epochs),
            n_threads: self.n_threads.unwrap_or(defaults.n_threads),
            checkpoint: checkpoint.as_deref(),
            resume: self.resume,
            stop: Some(&stop),
            ..defaults
        };
        let create = |out: &Path| {
            let environment = Environment::here(
                simulation.n_threads.into(),
                &self.device_name.to_string(),
                noise_label(&plan, noise),
                world.seed,
                plan.seed,
            );
            let writer = ResultsWriter::create(out, &plan, world, &environment, self.overwrite)?;
            writer.partition(&data)?;
            Ok::<_, SimulationError>(writer)
        };
        let mut writer = match self.out {
            Some(out) if !self.resume => Some(create(out)?),
            _ => None,
        };
        let mut unwritten = None;
        let result = simulation.run_on(self.ranks, &mut |progress| {
            if is_interrupted() {
                stop.store(true, Ordering::Relaxed);
            }
            if let (Some(out), None) = (self.out, &unwritten) {
                let written = match &progress {
                    Progress::Resumed { rounds } if !rounds.is_empty() => {
                        let resumed = ResultsWriter::resume(out, &plan, world, rounds.len() as u32);
                        resumed.map(|resumed| writer = Some(resumed))
                    }
                    Progress::Round { score, clients } => match &mut writer {
                        Some(writer) => writer.round(score, clients),
                        // Nothing was there to go on from.
                        None => create(out)
                            .and_then(|created| writer.insert(created).round(score, clients)),
                    },
                    _ => Ok(()),
                };
                if let Err(error) = written {
                    // What cannot be written down is not worth computing.
                    unwritten = Some(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
            observe(progress);
        });
        if let Some(error) = unwritten {
            return Err(error);
        }
        let result = result?;
        let mut summary = Summary::of(&plan, &result, noise, started.elapsed().as_secs_f64())?;
        if let Some(out) = self.out {
            let writer = writer.map_or_else(|| create(out), Ok)?;
            writer.finish(&plan, &result, &mut summary)?;
            // An ended run has nothing to go on from.
            let _ = fs::remove_dir_all(out.join(CHECKPOINT));
        }
        Ok(Done { plan, result, summary })
    }
}
