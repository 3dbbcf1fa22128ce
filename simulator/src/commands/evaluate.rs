//! `comity-sim evaluate`: models on the public test set.

use std::borrow::Cow;
use std::path::PathBuf;

use clap::Args;
use comity_burn_models::{
    DeviceChoice, Evaluation, all_cores, evaluate, normalisation, read_safetensors,
};
use comity_datasets::Dataset;
use comity_federation::{ClientId, ModelDigest, Parameters};
use serde::Serialize;

use crate::commands::{WorldArgs, read_plan};
use crate::output;

/// Test examples that the device holds at once.
const EVALUATION_BATCH: usize = 500;

/// Score models on a world's public test set.
///
/// The test set is public, so scoring it costs no privacy. Where the world's clients keep records for
/// testing, models are scored on those of each client too. Models are files that `comity-sim run
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
    /// On what each client keeps for testing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clients: Vec<ClientScore>,
    /// Of `clients`, each counted once.
    #[serde(skip_serializing_if = "Option::is_none")]
    clients_mean: Option<f64>,
}

#[derive(Serialize)]
struct ClientScore {
    client: ClientId,
    records: usize,
    accuracy: f64,
    loss: f64,
}

impl Evaluate {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        let plan = read_plan(&self.plan)?;
        let manifest = plan.model_manifest()?;
        let (world, base_dir) = self.world.read()?;
        let device = self.device.open()?;
        // All models are read before the first is scored, so that a wrong name costs no time.
        let mut models = Vec::with_capacity(self.models.len());
        for path in &self.models {
            models.push((path, read_safetensors(path, &manifest)?));
        }
        let data = match world.data.client_test {
            Some(_) => Some(world.load(&plan, &base_dir)?),
            None => None,
        };
        let test = match &data {
            Some(data) => Cow::Borrowed(&data.test),
            None => Cow::Owned(world.load_test(&plan, &base_dir)?),
        };
        let score = |parameters: &Parameters, data: &Dataset| {
            let normalise = normalisation(&plan.data);
            let (spec, n_threads) = (&plan.model, all_cores());
            evaluate(spec, parameters, data, normalise, &device, EVALUATION_BATCH, n_threads)
        };
        let mut scores = Vec::with_capacity(models.len());
        for (path, parameters) in models {
            let evaluation = score(&parameters, &test)?;
            let mut clients = Vec::new();
            for (index, client) in data.iter().flat_map(|data| data.clients().enumerate()) {
                let kept = data.as_ref().and_then(|data| data.client_test(index));
                let Some(kept) = kept else { continue };
                let Evaluation { accuracy, loss, .. } = score(&parameters, &kept)?;
                let client = client.clone();
                clients.push(ClientScore { client, records: kept.len(), accuracy, loss });
            }
            let sum: f64 = clients.iter().map(|score| score.accuracy).sum();
            scores.push(Score {
                path: path.clone(),
                model: parameters.digest(),
                accuracy: evaluation.accuracy,
                loss: evaluation.loss,
                clients_mean: (!clients.is_empty()).then(|| sum / clients.len() as f64),
                clients,
            });
        }
        if self.json { output::print_json(&scores) } else { output::print(&text(&scores)) }
    }
}

fn text(scores: &[Score]) -> String {
    let by_client = scores.iter().any(|score| score.clients_mean.is_some());
    let mut header = ["model", "accuracy", "loss"].map(str::to_owned).to_vec();
    if by_client {
        header.extend(scores[0].clients.iter().map(|score| score.client.to_string()));
        header.push("mean of clients".to_owned());
    }
    header.push("digest".to_owned());
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let rows = scores.iter().map(|score| {
        let mut row = vec![
            score.path.display().to_string(),
            percent(score.accuracy),
            format!("{:.4}", score.loss),
        ];
        row.extend(score.clients.iter().map(|client| percent(client.accuracy)));
        row.extend(score.clients_mean.map(percent));
        row.push(score.model.short());
        row
    });
    output::table(header, rows.collect())
}
