//! `comity-sim report`: one run to look at, or several compared.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use comity_simulator::RunFolder;
use comity_simulator::results::Comparison;
use comity_simulator::results::folder::{PLAN, write_whole};

use crate::output::{self, Hint};

/// Make a run's report anew, or compare several runs.
///
/// With one folder of comity-sim run, ended or not, its report.html is made anew. With several, or with a
/// folder of such folders (a sweep), runs that differ by their seeds only are one group, and the table
/// shows for each group the mean over its runs ± half the 95 % confidence interval (Student's t).
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  comity-sim report target/sim
  comity-sim report fedavg-1 fedavg-2 scaffold-1 scaffold-2 --out comparison.html
  comity-sim report target/sweep --json | jq '.groups[] | {name, accuracy}'")]
pub(crate) struct Report {
    /// Folders of runs, or of folders of runs.
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Write the comparison with its curves as a page of its own.
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Print the comparison as JSON.
    #[arg(long)]
    json: bool,
}

impl Report {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        if let [dir] = self.dirs.as_slice()
            && dir.join(PLAN).exists()
            && self.out.is_none()
            && !self.json
        {
            let path = RunFolder::read(dir)?.write_report()?;
            return output::print(&format!("{}\n", path.display()));
        }
        let mut folders = Vec::new();
        for dir in &self.dirs {
            for dir in runs_in(dir)? {
                folders.push(RunFolder::read(&dir)?);
            }
        }
        let title = match self.dirs.as_slice() {
            [dir] => dir.display().to_string(),
            dirs => format!("{} runs", dirs.len().max(folders.len())),
        };
        show(&Comparison::of(&folders), &title, self.out.as_deref(), self.json)
    }
}

/// `dir` if it is a run's folder, else the runs' folders in it, by name.
fn runs_in(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if dir.join(PLAN).exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()));
    let mut found = Vec::new();
    for entry in entries? {
        let path = entry?.path();
        if path.join(PLAN).exists() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        let error = anyhow::anyhow!("{} holds no run", dir.display());
        return Err(Hint::attach(error, "give the --out folder of a comity-sim run or sweep"));
    }
    Ok(found)
}

/// Prints a comparison, and writes it to `out`.
pub(crate) fn show(
    comparison: &Comparison,
    title: &str,
    out: Option<&Path>,
    json: bool,
) -> anyhow::Result<()> {
    if let Some(out) = out {
        write_whole(out, comparison.html(title).as_bytes())?;
    }
    for (dir, reason) in &comparison.left_out {
        eprintln!("left out: {}: {reason}", dir.display());
    }
    if json {
        output::print_json(comparison)?;
    } else if !comparison.groups.is_empty() {
        let (header, rows) = comparison.table();
        output::print(&output::table(header, rows))?;
    }
    if comparison.groups.is_empty() {
        bail!("no run has ended, so there is nothing to compare");
    }
    Ok(())
}
