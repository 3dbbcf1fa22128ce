//! `comity-sim shard`: a sweep over machines that share nothing but a store.
//!
//! The plan of a sweep is an object that says everything; a shard is an index into it. What a cell
//! comes to is put into the store create-only, under the plan's digest, so that a shard that is run
//! again, or twice at once, does no harm.

mod emit;
mod result;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use comity_burn_models::DeviceChoice;
use comity_simulator::results::Comparison;
use comity_simulator::results::folder::SUMMARY;
use comity_simulator::store::Store;
use comity_simulator::{RunFolder, SimulationError, World};
use serde::{Deserialize, Serialize};

use self::emit::Machine;
use self::result::{Given, conflicts, fetch, key_of, put};
use crate::commands::cells::{Axes, Cell};
use crate::commands::sweep::Runner;
use crate::commands::{WorldArgs, read_text, report};
use crate::interrupt::is_interrupted;
use crate::output::{self, Hint};

/// Where an array's or an indexed job's index stands, in the order in which they are asked.
const INDEX_VARIABLES: [&str; 2] = ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"];

/// Run a sweep on many machines that share a folder or an S3-compatible bucket.
#[derive(Subcommand)]
#[command(after_long_help = "\
Examples:
  comity-sim shard plan plan.toml --world world.toml --seeds 0..99 --shards 50 --out /shared/store \\
      --emit slurm --throttle 20 > sweep.sbatch && sbatch sweep.sbatch
  comity-sim shard run /shared/store --index 7
  comity-sim shard status /shared/store
  comity-sim shard collect /shared/store --out sweep

STORE is a folder that all machines see, or s3://bucket/prefix in builds with the feature `s3`, with the keys
in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and another service than Amazon's in AWS_ENDPOINT.")]
pub(crate) enum Shard {
    /// Put the plan of a sweep into a store, and write the script that runs it.
    Plan(PlanShards),
    /// Run one shard's cells and put what they come to into the store.
    Run(RunShard),
    /// Show which cells are done.
    Status(Status),
    /// Fetch what is done into folders as a sweep's, and compare it.
    Collect(Collect),
}

/// Put the plan of a sweep into a store, and write the script that runs it.
///
/// The settings are those of comity-sim sweep. The plan is named by its digest; the same plan again is the
/// same object.
#[derive(Args)]
pub(crate) struct PlanShards {
    /// Plan of the runs.
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    axes: Axes,
    /// In how many shards; cell k goes to shard k modulo N.
    #[arg(long, value_name = "N")]
    shards: NonZero<u32>,
    /// Store of plan and results.
    #[arg(long, value_name = "STORE")]
    out: String,
    /// Write to stdout what hands the shards to a cluster.
    #[arg(long, value_name = "CLUSTER")]
    emit: Option<Cluster>,
    #[command(flatten)]
    machine: Machine,
    /// Print the plan's digest and its cells as JSON.
    #[arg(long, conflicts_with = "emit")]
    json: bool,
}

/// Who runs the shards.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cluster {
    /// An array job for sbatch.
    Slurm,
    /// An Indexed Job for kubectl apply.
    Kubernetes,
}

/// Which plan of a store.
#[derive(Args)]
pub(crate) struct Which {
    /// Store of plan and results.
    #[arg(value_name = "STORE")]
    store: String,
    /// Digest of the plan, or its beginning; needed where the store holds several.
    #[arg(long = "plan", value_name = "DIGEST")]
    digest: Option<String>,
}

/// Run one shard's cells and put what they come to into the store.
///
/// A cell whose result is there is skipped. A result that is there by then, with the same bits, is fine; one
/// with other bits is kept, reported, and this command fails.
#[derive(Args)]
pub(crate) struct RunShard {
    #[command(flatten)]
    which: Which,
    /// Which shard, from 0; by default what SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX says.
    #[arg(long, value_name = "I")]
    index: Option<u32>,
    /// Folder with the world's data files on this machine.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder for cells at work, from which they go on when the shard is run again here.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// How many cores train; all of them if not given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Device that trains and scores.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Print what became of the cells as JSON.
    #[arg(long)]
    json: bool,
}

/// Show which cells are done.
#[derive(Args)]
pub(crate) struct Status {
    #[command(flatten)]
    which: Which,
    /// Print the cells as JSON.
    #[arg(long)]
    json: bool,
}

/// Fetch what is done into folders as a sweep's, and compare it.
#[derive(Args)]
pub(crate) struct Collect {
    #[command(flatten)]
    which: Which,
    /// Folder for the cells' folders.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the comparison as JSON.
    #[arg(long)]
    json: bool,
}

/// Everything about a sharded sweep.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardPlan {
    /// Of Comity: another version's arithmetic may have other bits.
    comity: String,
    shards: NonZero<u32>,
    plan: String,
    world: String,
    axes: Axes,
}

/// A plan as it stands in a store.
struct Stored {
    digest: String,
    plan: ShardPlan,
    cells: Vec<Cell>,
}

/// A cell and what became of it, for `--json`.
#[derive(Serialize)]
struct Line<'a> {
    cell: &'a str,
    shard: u32,
    status: &'static str,
}

impl Shard {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        match self {
            Self::Plan(command) => command.execute(),
            Self::Run(command) => command.execute(),
            Self::Status(command) => command.execute(),
            Self::Collect(command) => command.execute(),
        }
    }
}

impl PlanShards {
    fn execute(&self) -> anyhow::Result<()> {
        let plan = read_text(&self.plan, "plan", "examples/fashion/plan.toml")?;
        let world = self.world.absolute(World::from_toml(&self.world.text()?)?)?;
        let address = address(&self.out)?;
        let plan = ShardPlan {
            comity: env!("CARGO_PKG_VERSION").to_owned(),
            shards: self.shards,
            plan,
            world: toml::to_string(&world)?,
            axes: self.axes.clone(),
        };
        let json = output::json(&plan)?;
        let digest = blake3::hash(json.as_bytes()).to_hex()[..32].to_owned();
        let cells = plan.axes.cells(&plan.plan, &plan.world)?;
        if self.shards.get() as usize > cells.len() {
            bail!("{} shards for {} cells; some would have nothing", self.shards, cells.len());
        }
        Store::open(&address)?.create(&format!("plans/{digest}.json"), json.as_bytes())?;
        let name = cells[0].plan.name.clone();
        eprintln!("{} cells in {} shards, plan {digest} in {address}", cells.len(), self.shards);
        let stored = Stored { digest, plan, cells };
        match self.emit {
            Some(Cluster::Slurm) => {
                let script = self.machine.slurm(&name, &address, &stored.digest, self.shards);
                output::print(&script)
            }
            Some(Cluster::Kubernetes) => {
                let job = self.machine.kubernetes(&name, &address, &stored.digest, self.shards)?;
                output::print(&job)
            }
            None if self.json => output::print_json(&serde_json::json!({
                "plan": stored.digest,
                "cells": stored.lines(&BTreeMap::new()),
            })),
            None => output::print(&format!("{}\n", stored.digest)),
        }
    }
}

/// `store` so that every machine finds it: an absolute path, or an address.
fn address(store: &str) -> anyhow::Result<String> {
    if store.contains("://") {
        return Ok(store.to_owned());
    }
    let path = std::path::absolute(store)?;
    path.into_os_string().into_string().ok().context("the store's path is not Unicode")
}

impl Which {
    fn open(&self) -> anyhow::Result<(Store, Stored)> {
        let store = Store::open(&self.store)?;
        let wanted = self.digest.as_deref().unwrap_or("");
        let plans = store.list("plans")?;
        let named = plans
            .iter()
            .filter_map(|key| key.strip_prefix("plans/")?.strip_suffix(".json"))
            .filter(|digest| digest.starts_with(wanted));
        let found: Vec<&str> = named.collect();
        let [digest] = found.as_slice() else {
            let error = match found.len() {
                0 => anyhow::anyhow!("{} holds no such plan of shards", self.store),
                n => anyhow::anyhow!("{} holds {n} plans: {}", self.store, found.join(", ")),
            };
            let advice = "comity-sim shard plan puts one there; --plan DIGEST says which";
            return Err(Hint::attach(error, advice));
        };
        let key = format!("plans/{digest}.json");
        let bytes = store.get(&key)?.with_context(|| format!("{key} is gone"))?;
        if !blake3::hash(&bytes).to_hex().starts_with(digest) {
            bail!("{key} is not what its name says: it was changed or damaged");
        }
        let plan: ShardPlan = serde_json::from_slice(&bytes).with_context(|| key.clone())?;
        if plan.comity != env!("CARGO_PKG_VERSION") {
            bail!(
                "the plan is of Comity {}, this is {}: results could differ in their bits",
                plan.comity,
                env!("CARGO_PKG_VERSION")
            );
        }
        let cells = plan.axes.cells(&plan.plan, &plan.world)?;
        Ok((store, Stored { digest: (*digest).to_owned(), plan, cells }))
    }
}

impl Stored {
    fn shard_of(&self, cell: usize) -> u32 {
        (cell % self.plan.shards.get() as usize) as u32
    }

    fn lines(&self, status: &BTreeMap<usize, &'static str>) -> Vec<Line<'_>> {
        self.cells
            .iter()
            .enumerate()
            .map(|(index, cell)| Line {
                cell: &cell.name,
                shard: self.shard_of(index),
                status: status.get(&index).copied().unwrap_or("waiting"),
            })
            .collect()
    }
}

impl RunShard {
    fn execute(&self) -> anyhow::Result<()> {
        let index = self.index()?;
        let (store, stored) = self.which.open()?;
        if index >= stored.plan.shards.get() {
            bail!("shard {index} of {}: they count from 0", stored.plan.shards);
        }
        let device = self.device.open()?;
        let runner = Runner { device_name: &self.device, device: &device, n_threads: self.threads };
        let scratch = tempfile::tempdir()?;
        let work = self.work.as_deref().unwrap_or(scratch.path()).join(&stored.digest);
        let (mut status, mut first_error) = (BTreeMap::new(), None);
        for (at, cell) in stored.cells.iter().enumerate() {
            if stored.shard_of(at) != index {
                continue;
            }
            if is_interrupted() {
                // What remains is another try's.
                first_error.get_or_insert(SimulationError::Interrupted.into());
                break;
            }
            if store.get(&key_of(&stored.digest, &cell.name))?.is_some() {
                eprintln!("{}: is in the store", cell.name);
                status.insert(at, "was_there");
                continue;
            }
            let mut cell = cell.clone();
            if let Some(data) = &self.data {
                cell.world.data.dir = Some(std::path::absolute(data)?);
            }
            let dir = work.join(&cell.name);
            let given = runner
                .bring_to_its_end(&cell, &dir, &cell.name)
                .map_err(anyhow::Error::from)
                .and_then(|()| put(&store, &stored.digest, &cell.name, &dir));
            let became = match given {
                Ok(Given::Done) => "done",
                Ok(Given::SameBits) => {
                    eprintln!("{}: another machine was first, with the same bits", cell.name);
                    "was_there"
                }
                Err(error) => {
                    eprintln!("{}: {error:#}", cell.name);
                    first_error.get_or_insert(error);
                    "failed"
                }
            };
            status.insert(at, became);
        }
        if self.json {
            let lines = stored.lines(&status).into_iter();
            let lines: Vec<Line<'_>> = lines.filter(|line| line.shard == index).collect();
            output::print_json(&lines)?;
        }
        match first_error {
            None => Ok(()),
            Some(error) => Err(error.context(format!("shard {index} is not done"))),
        }
    }

    fn index(&self) -> anyhow::Result<u32> {
        if let Some(index) = self.index {
            return Ok(index);
        }
        for name in INDEX_VARIABLES {
            if let Ok(text) = std::env::var(name) {
                return text.parse().with_context(|| format!("{name} is {text:?}, no index"));
            }
        }
        let error = anyhow::anyhow!("no shard is named");
        Err(Hint::attach(error, format!("give --index I, or set {}", INDEX_VARIABLES.join(" or "))))
    }
}

/// Which cells have a result.
fn status(store: &Store, stored: &Stored) -> anyhow::Result<BTreeMap<usize, &'static str>> {
    let keys = store.list(&format!("results/{}", stored.digest))?;
    let mut status = BTreeMap::new();
    for (index, cell) in stored.cells.iter().enumerate() {
        if keys.binary_search(&key_of(&stored.digest, &cell.name)).is_ok() {
            status.insert(index, "done");
        }
        if conflicts(&keys, &stored.digest, &cell.name) > 0 {
            status.insert(index, "differs");
        }
    }
    Ok(status)
}

impl Status {
    fn execute(&self) -> anyhow::Result<()> {
        let (store, stored) = self.which.open()?;
        let status = status(&store, &stored)?;
        if self.json {
            return output::print_json(&stored.lines(&status));
        }
        let mut by_shard: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for index in 0..stored.cells.len() {
            let (n_done, n_all) = by_shard.entry(stored.shard_of(index)).or_default();
            *n_done += usize::from(status.contains_key(&index));
            *n_all += 1;
        }
        let mut text = format!("{} of {} cells are done\n", status.len(), stored.cells.len());
        for (shard, (n_done, n_all)) in by_shard.iter().filter(|(_, (done, all))| done < all) {
            text += &format!("shard {shard}: {n_done} of {n_all}\n");
        }
        for (index, _) in status.iter().filter(|(_, status)| **status == "differs") {
            text += &format!("two machines got different bits: {}\n", stored.cells[*index].name);
        }
        output::print(&text)
    }
}

impl Collect {
    fn execute(&self) -> anyhow::Result<()> {
        let (store, stored) = self.which.open()?;
        let status = status(&store, &stored)?;
        output::make_dir(&self.out)?;
        let mut folders = Vec::new();
        for index in status.keys() {
            let name = &stored.cells[*index].name;
            let dir = self.out.join(name);
            if !dir.join(SUMMARY).exists() {
                fetch(&store, &stored.digest, name, &dir)
                    .with_context(|| format!("the result of {name}"))?;
            }
            folders.push(RunFolder::read(&dir)?);
        }
        let n_missing = stored.cells.len() - status.len();
        if n_missing > 0 {
            eprintln!("{n_missing} of {} cells are not done yet", stored.cells.len());
        }
        for (index, _) in status.iter().filter(|(_, status)| **status == "differs") {
            eprintln!("two machines got different bits: {}", stored.cells[*index].name);
        }
        let title = format!("{} · {} cells", stored.cells[0].plan.name, stored.cells.len());
        let page: &Path = &self.out.join("comparison.html");
        report::show(&Comparison::of(&folders), &title, Some(page), self.json)
    }
}
