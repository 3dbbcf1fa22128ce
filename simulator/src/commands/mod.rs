//! The commands, one module each, and how they read plans and worlds.

pub(crate) mod audit;
pub(crate) mod cells;
pub(crate) mod data;
pub(crate) mod evaluate;
pub(crate) mod job;
pub(crate) mod privacy;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod shard;
pub(crate) mod split;
pub(crate) mod sweep;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use comity_federation::{IdError, Plan};
use comity_simulator::{Baseline, World};

use crate::output::Hint;
use crate::overrides::{plan_with, world_with};

/// Which world, and where its files lie.
#[derive(Args)]
pub(crate) struct WorldArgs {
    /// World file: which data there are, and how they lie over the plan's clients.
    #[arg(long, value_name = "WORLD.toml")]
    world: PathBuf,
    /// Folder with the world's data files; wins over the world's own `data.dir`.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Seeds the split and the simulated noise; wins over the world's own `seed`.
    #[arg(long, value_name = "N")]
    world_seed: Option<u64>,
    /// Who trains instead of the federation: `pooled`, one client with the rows of all, or one of the
    /// plan's clients by itself; wins over the world's own `baseline`.
    #[arg(long, value_name = "pooled|CLIENT", value_parser = baseline)]
    baseline: Option<Baseline>,
}

fn baseline(text: &str) -> Result<Baseline, IdError> {
    match text {
        "pooled" => Ok(Baseline::Pooled),
        client => client.parse().map(Baseline::Alone),
    }
}

impl WorldArgs {
    /// The world, and the folder at which its paths start.
    fn read(&self) -> anyhow::Result<(World, PathBuf)> {
        let world = World::from_toml(&self.text()?)
            .with_context(|| format!("in {}", self.world.display()))?;
        let base_dir = world.base_dir(&self.world, self.data.as_deref());
        Ok((world, base_dir))
    }

    /// The world with `settings` over it, and an absolute path to its data.
    fn read_absolute(&self, settings: &[String]) -> anyhow::Result<World> {
        let world = world_with(&self.text()?, settings)
            .with_context(|| format!("in {}", self.world.display()))?;
        self.absolute(world)
    }

    /// The text of the world, with what the command line says of it.
    fn text(&self) -> anyhow::Result<String> {
        let text = read_text(&self.world, "world", "docs/samples/world.toml")?;
        if self.world_seed.is_none() && self.baseline.is_none() {
            return Ok(text);
        }
        let mut world =
            World::from_toml(&text).with_context(|| format!("in {}", self.world.display()))?;
        world.seed = self.world_seed.unwrap_or(world.seed);
        world.baseline = self.baseline.clone().or(world.baseline);
        Ok(toml::to_string(&world)?)
    }

    /// `world` with an absolute path to its data.
    fn absolute(&self, mut world: World) -> anyhow::Result<World> {
        let base_dir = world.base_dir(&self.world, self.data.as_deref());
        // A world beside one has an empty base, which is no path.
        world.data.dir = Some(std::path::absolute(Path::new(".").join(base_dir))?);
        Ok(world)
    }
}

fn read_plan(path: &Path) -> anyhow::Result<Plan> {
    read_plan_with(path, &[])
}

/// The plan in a file, with `settings` over it.
fn read_plan_with(path: &Path, settings: &[String]) -> anyhow::Result<Plan> {
    let text = read_text(path, "plan", "examples/fashion/plan.toml")?;
    plan_with(&text, settings).with_context(|| format!("in {}", path.display()))
}

fn read_text(path: &Path, what: &str, sample: &str) -> anyhow::Result<String> {
    fs::read_to_string(path)
        .with_context(|| format!("cannot read the {what} {}", path.display()))
        .map_err(|error| Hint::attach(error, format!("{sample} is a commented sample")))
}
