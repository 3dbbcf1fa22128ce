//! `comity-sim split`: each client's share of a world's data as files of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use comity_datasets::{Dataset, write_idx};
use comity_federation::ClientId;
use comity_simulator::folder_name;
use comity_simulator::results::folder::partial;
use serde::Serialize;

use crate::commands::{WorldArgs, read_plan};
use crate::output;

/// Write each client's share of a world's data as files of its own.
///
/// Makes OUT/COUNTRY-institution/images.idx and labels.idx for every client that the plan names:
/// the very shards that `comity-sim run` trains on, for real client nodes to serve.
///
/// The counts that it prints are those of the simulated world; a real institution never prints
/// them.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  comity-sim split --world examples/fashion/world.toml --plan examples/fashion/plan.toml \\
      --out target/shards
  comity-sim split --world world.toml --plan plan.toml --out shards --json | jq '.[].records'")]
pub(crate) struct Split {
    #[command(flatten)]
    world: WorldArgs,
    /// Plan that names the clients.
    #[arg(long, value_name = "PLAN.toml")]
    plan: PathBuf,
    /// Folder for the shards; files of the same name are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the shards as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shard {
    client: ClientId,
    dir: PathBuf,
    records: usize,
    records_declared: u64,
    label_counts: Vec<usize>,
}

impl Split {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        let plan = read_plan(&self.plan)?;
        let (world, base_dir) = self.world.read()?;
        let trained = world.baseline_plan(&plan)?;
        let (train, rows) = world.load_rows(&plan, &base_dir)?;
        let mut shards = Vec::with_capacity(rows.len());
        for (named, rows) in trained.cohort.clients.iter().zip(&rows) {
            let (client, dataset) = (&named.id, &train.subset(&rows.train));
            let dir = self.out.join(folder_name(client));
            write_shard(&dir, dataset).with_context(|| format!("the shard of {client}"))?;
            shards.push(Shard {
                client: client.clone(),
                dir,
                records: dataset.len(),
                records_declared: named.records,
                label_counts: dataset.label_counts(),
            });
        }
        if self.json { output::print_json(&shards) } else { output::print(&text(&shards)) }
    }
}

/// Writes beside the shard's folder first, so that a shard's files are whole or not there.
fn write_shard(dir: &Path, dataset: &Dataset) -> anyhow::Result<()> {
    let partial = partial(dir);
    output::make_dir(&partial)?;
    write_idx(&partial, dataset)?;
    output::make_dir(dir)?;
    for name in ["images.idx", "labels.idx"] {
        let path = dir.join(name);
        fs::rename(partial.join(name), &path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    fs::remove_dir(&partial).with_context(|| format!("cannot remove {}", partial.display()))
}

fn text(shards: &[Shard]) -> String {
    let header = ["client", "records", "declared", "by label, from 0", "folder"];
    let rows = shards.iter().map(|shard| {
        vec![
            shard.client.to_string(),
            shard.records.to_string(),
            shard.records_declared.to_string(),
            output::joined(&shard.label_counts),
            shard.dir.display().to_string(),
        ]
    });
    output::table(header.map(str::to_owned).to_vec(), rows.collect())
}
