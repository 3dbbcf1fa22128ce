//! The cells of a sweep: every combination of the values of its settings, for every seed.
//!
//! Pure: the same plan, world, settings and seeds give the same cells in the same order on every machine,
//! which is what lets shards work on them without talking to one another.

use anyhow::{Context, bail};
use clap::Args;
use comity_federation::Plan;
use comity_simulator::World;
use serde::{Deserialize, Serialize};

use crate::commands::run::WORLD_PREFIX;
use crate::overrides::{plan_with, world_with};

/// Most cells of a sweep.
const N_CELLS_MAX: usize = 100_000;
/// Longest name of a cell, which is that of its folder.
const NAME_MAX: usize = 120;

/// The axes of a sweep on the command line.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Axes {
    /// A key of the plan, or with `world.` before it of the world, and its values with commas between; may
    /// be given again for other keys. Commas in quotes, brackets and braces are part of a value, so that
    /// `key=[1,2]` is one list and `key=[1,2],[3]` two.
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub(crate) set: Vec<String>,
    /// Seeds, each for plan and world at once: `0..4` are the five from 0 to 4, `1,5,7` those three.
    #[arg(long, value_name = "SEEDS")]
    pub(crate) seeds: Option<String>,
}

/// One run of a sweep.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// What tells it from the others; fit for a folder.
    pub(crate) name: String,
    pub(crate) plan: Plan,
    pub(crate) world: World,
}

impl Axes {
    /// The cells over the plan and the world of these texts.
    ///
    /// # Errors
    /// What is no setting or no seed, and what plan or world refuse, with the cell.
    pub(crate) fn cells(&self, plan: &str, world: &str) -> anyhow::Result<Vec<Cell>> {
        let mut axes: Vec<(String, Vec<String>)> = Vec::new();
        for set in &self.set {
            let Some((key, values)) = set.split_once('=') else {
                bail!("--set {set} has no `=`; write --set key=value,value");
            };
            let key = key.trim().to_owned();
            if axes.iter().any(|(known, _)| *known == key) {
                bail!("--set {key} is given twice; give all its values at once, with commas");
            }
            axes.push((key, split_values(values)));
        }
        let seeds = self.seeds.as_deref().map(parse_seeds).transpose()?;
        let n_cells = axes
            .iter()
            .map(|(_, values)| values.len())
            .chain(seeds.as_ref().map(Vec::len))
            .try_fold(1usize, usize::checked_mul)
            .filter(|n| *n <= N_CELLS_MAX);
        if n_cells.is_none() {
            bail!("the sweep has more than {N_CELLS_MAX} cells");
        }
        let mut settings: Vec<Vec<(&str, &str)>> = vec![Vec::new()];
        for (key, values) in &axes {
            settings = settings
                .iter()
                .flat_map(|before| {
                    values.iter().map(|value| {
                        let mut all = before.clone();
                        all.push((key, value));
                        all
                    })
                })
                .collect();
        }
        let mut cells = Vec::new();
        for settings in &settings {
            for seed in seeds.as_deref().map_or(vec![None], |s| s.iter().map(Some).collect()) {
                cells.push(cell(plan, world, settings, seed.copied(), &axes)?);
            }
        }
        let mut names: Vec<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two cells are both {}; give each value once", twice[0]);
        }
        Ok(cells)
    }
}

fn cell(
    plan: &str,
    world: &str,
    settings: &[(&str, &str)],
    seed: Option<u64>,
    axes: &[(String, Vec<String>)],
) -> anyhow::Result<Cell> {
    let name = name(settings, seed, axes);
    let (mut of_plan, mut of_world) = (Vec::new(), Vec::new());
    for (key, value) in settings {
        match key.strip_prefix(WORLD_PREFIX) {
            Some(key) => of_world.push(format!("{key}={value}")),
            None => of_plan.push(format!("{key}={value}")),
        }
    }
    if let Some(seed) = seed {
        of_plan.push(format!("seed={seed}"));
        of_world.push(format!("seed={seed}"));
    }
    let of_cell = || format!("in the cell {name}");
    Ok(Cell {
        plan: plan_with(plan, &of_plan).with_context(of_cell)?,
        world: world_with(world, &of_world).with_context(of_cell)?,
        name,
    })
}

/// A cell's name from its settings: the last parts of the keys where they suffice, characters that folders
/// may have.
fn name(settings: &[(&str, &str)], seed: Option<u64>, axes: &[(String, Vec<String>)]) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let mut parts: Vec<String> = settings
        .iter()
        .filter(|(key, _)| axes.iter().any(|(axis, values)| axis == key && values.len() > 1))
        .map(|(key, value)| {
            let is_unique = axes.iter().filter(|(axis, _)| last(axis) == last(key)).count() == 1;
            format!("{}={value}", if is_unique { last(key) } else { (*key).to_owned() })
        })
        .collect();
    parts.extend(seed.map(|seed| format!("seed={seed}")));
    if parts.is_empty() {
        return "run".to_owned();
    }
    let whole = parts.join(",");
    let fit = |c: char| c.is_ascii_alphanumeric() || "=,._-+".contains(c);
    let name: String = whole.chars().map(|c| if fit(c) { c } else { '_' }).collect();
    // What was replaced or cut could be another cell's; a digest of all of it cannot.
    if name == whole && name.len() <= NAME_MAX && !name.starts_with('.') {
        return name;
    }
    let digest = blake3::hash(whole.as_bytes()).to_hex();
    let kept: String = name.chars().take(NAME_MAX - 9).collect();
    format!("{}-{}", kept.trim_start_matches('.'), &digest[..8])
}

/// `text` at its commas, but for those in quotes, brackets and braces.
fn split_values(text: &str) -> Vec<String> {
    let (mut values, mut value) = (Vec::new(), String::new());
    let (mut depth, mut quote, mut is_escaped) = (0usize, None, false);
    for c in text.chars() {
        match (quote, c) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some('"'), '\\') => is_escaped = true,
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                values.push(std::mem::take(&mut value).trim().to_owned());
                continue;
            }
            _ => {}
        }
        value.push(c);
    }
    values.push(value.trim().to_owned());
    values
}

/// `0..4` (both ends), `1,5,7`, and both mixed.
fn parse_seeds(text: &str) -> anyhow::Result<Vec<u64>> {
    let mut seeds = Vec::new();
    for part in text.split(',').map(str::trim) {
        let no_seed = || format!("{part:?} is no seed and no range; write 0..4 or 1,5,7");
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let first: u64 = first.parse().with_context(no_seed)?;
        let last: u64 = last.trim_start_matches('=').parse().with_context(no_seed)?;
        if first > last || last - first >= N_CELLS_MAX as u64 {
            bail!("{}: from low to high, at most {N_CELLS_MAX}", no_seed());
        }
        seeds.extend(first..=last);
    }
    let n = seeds.len();
    seeds.sort_unstable();
    seeds.dedup();
    if seeds.len() < n {
        bail!("--seeds {text} has a seed twice");
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = include_str!("../../../examples/fashion/plan.toml");
    const WORLD: &str = include_str!("../../../examples/fashion/world.toml");

    fn cells(set: &[&str], seeds: Option<&str>) -> anyhow::Result<Vec<Cell>> {
        let axes = Axes {
            set: set.iter().map(|s| (*s).to_owned()).collect(),
            seeds: seeds.map(str::to_owned),
        };
        axes.cells(PLAN, WORLD)
    }

    #[test]
    fn every_combination_is_a_cell_for_every_seed() {
        let set = [
            "training.optimizer.learning_rate=0.1,0.01",
            "world.partition.alpha=0.5,100",
            "rounds=3",
        ];
        let cells = cells(&set, Some("0..2")).unwrap();
        assert_eq!(cells.len(), 2 * 2 * 3);
        assert_eq!(cells[0].name, "learning_rate=0.1,alpha=0.5,seed=0");
        assert_eq!(cells[11].name, "learning_rate=0.01,alpha=100,seed=2");
        assert_eq!((cells[11].plan.seed, cells[11].world.seed, cells[11].plan.rounds), (2, 2, 3));
        let partition = &cells[11].world.partition;
        assert!(
            matches!(partition, comity_datasets::Partition::Dirichlet { alpha, .. } if *alpha == 100.0),
            "{partition:?}"
        );
    }

    #[test]
    fn commas_in_a_value_are_part_of_it() {
        for (text, expected) in [
            ("1,2", vec!["1", "2"]),
            ("[1,2],[3]", vec!["[1,2]", "[3]"]),
            ("{ a = 1, b = [2,3] } , x", vec!["{ a = 1, b = [2,3] }", "x"]),
            ("\"a,\\\",b\",'c,d'", vec!["\"a,\\\",b\"", "'c,d'"]),
            ("", vec![""]),
        ] {
            assert_eq!(split_values(text), expected, "{text}");
        }
    }

    #[test]
    fn names_fit_folders_and_differ() {
        let strategies =
            "aggregation.strategy=fedavg,{ fedprox = { mu = 0.1 } },{ fedprox = { mu = 0.2 } }";
        let axes = vec![("a.s".to_owned(), split_values(strategies))];
        let values = &axes[0].1;
        let names: Vec<String> = values.iter().map(|v| name(&[("a.s", v)], None, &axes)).collect();
        assert!(names.iter().all(|n| !n.contains(['/', ' ', '{'])), "{names:?}");
        assert_ne!(names[1], names[2]);
        assert_eq!(name(&[], None, &[]), "run");
        let long = "x".repeat(500);
        let axes = vec![("k".to_owned(), vec![long.clone(), "y".to_owned()])];
        assert!(name(&[("k", &long)], Some(1), &axes).len() <= NAME_MAX);
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_any_run() {
        for (set, seeds, expected) in [
            (vec!["rounds"], None, "no `="),
            (vec!["rounds=1", "rounds=2"], None, "twice"),
            (vec!["rounds=1,1"], None, "both rounds=1"),
            (vec!["round=1"], None, "rounds"),
            (vec!["world.partition.alfa=1"], None, "alpha"),
            (vec!["rounds=1,0"], None, "in the cell rounds=0"),
            (vec![], Some("4..0"), "from low to high"),
            (vec![], Some("a"), "no seed"),
            (vec![], Some("1,0..3"), "twice"),
            (vec![], Some("0..99999999"), "at most"),
        ] {
            let error = format!("{:#}", cells(&set, seeds).unwrap_err());
            assert!(error.contains(expected), "{set:?} {seeds:?}: {error}");
        }
        assert_eq!(parse_seeds("7,0..=2").unwrap(), [0, 1, 2, 7]);
    }
}
