//! `comity-sim evaluate`: models on the public test set.

use std::path::PathBuf;

use clap::Args;
use comity_burn_models::{DeviceChoice, evaluate, normalisation, read_safetensors};
use comity_federation::ModelDigest;
use serde::Serialize;

use crate::commands::{WorldArgs, read_plan};
use crate::output;

/// Test examples that the device holds at once.
const EVALUATION_BATCH: usize = 500;

/// Score models on a world's public test set.
///
/// The test set is public, so scoring it costs no privacy. Models are files that `comity-sim run
/// --out` or `comity-coordinator model export` wrote.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  comity-sim evaluate target/sim/model.safetensors \\
      --plan examples/fashion/plan.toml --world examples/fashion/world.toml
  comity-sim evaluate round-*.safetensors --plan plan.toml --world world.toml --json")]
pub(crate) struct Evaluate {
    /// Models to score.
    #[arg(required = true, value_name = "MODEL.safetensors")]
    models: Vec<PathBuf>,
    /// Plan under which they were trained.
    #[arg(long, value_name = "PLAN.toml")]
    plan: PathBuf,
    #[command(flatten)]
    world: WorldArgs,
    /// Device that scores.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Print the scores as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Score {
    path: PathBuf,
    model: ModelDigest,
    accuracy: f64,
    loss: f64,
}

impl Evaluate {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        let plan = read_plan(&self.plan)?;
        let manifest = plan.manifest()?;
        let (world, base_dir) = self.world.read()?;
        let device = self.device.open()?;
        // All models are read before the first is scored, so that a wrong name costs no time.
        let mut models = Vec::with_capacity(self.models.len());
        for path in &self.models {
            models.push((path, read_safetensors(path, &manifest)?));
        }
        let test = world.load_test(&plan, &base_dir)?;
        let mut scores = Vec::with_capacity(models.len());
        for (path, parameters) in models {
            let evaluation = evaluate(
                &plan.model,
                &parameters,
                &test,
                normalisation(&plan.data),
                &device,
                EVALUATION_BATCH,
            )?;
            scores.push(Score {
                path: path.clone(),
                model: parameters.digest(),
                accuracy: evaluation.accuracy,
                loss: evaluation.loss,
            });
        }
        if self.json { output::print_json(&scores) } else { output::print(&text(&scores)) }
    }
}

fn text(scores: &[Score]) -> String {
    let rows = scores.iter().map(|score| {
        vec![
            score.path.display().to_string(),
            format!("{:.2} %", 100.0 * score.accuracy),
            format!("{:.4}", score.loss),
            score.model.short(),
        ]
    });
    let header = ["model", "accuracy", "loss", "digest"];
    output::table(header.map(str::to_owned).to_vec(), rows.collect())
}
