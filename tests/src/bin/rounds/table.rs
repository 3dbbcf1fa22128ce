//! The one table in which all figures end.

use std::fmt::{self, Write as _};

/// One figure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) ours: String,
    /// What it is compared with, measured in the same run or published.
    pub(crate) anchor: String,
    /// Ours over the anchor, where both are of this run.
    pub(crate) ratio: Option<f64>,
    pub(crate) target: String,
    /// `None`: for information.
    pub(crate) met: Option<bool>,
}

impl Row {
    /// The row of a figure that could not be measured.
    pub(crate) fn failed(name: &str, error: &anyhow::Error) -> Self {
        let why = format!("{error:#}").replace(['\n', '|'], " ");
        Self {
            figure: name.to_owned(),
            ours: format!("not measured: {why}"),
            met: Some(false),
            ..Self::default()
        }
    }
}

/// The table, under the machine that it is of.
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn extend(&mut self, rows: Vec<Row>) {
        self.0.extend(rows);
    }

    /// Whether every figure that has a target met it.
    pub(crate) fn all_met(&self) -> bool {
        self.0.iter().all(|row| row.met != Some(false))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", machine())?;
        writeln!(f, "| figure | ours | anchor | ratio | target | |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for row in &self.0 {
            let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            let met = row.met.map_or("", |met| if met { "met" } else { "**missed**" });
            writeln!(
                f,
                "| {} | {} | {} | {ratio} | {} | {met} |",
                row.figure, row.ours, row.anchor, row.target
            )?;
        }
        Ok(())
    }
}

/// Processor, cores and load, where the system tells.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let mut text = String::new();
    if let Some((_, model)) = model {
        let _ = write!(text, "{}, ", model.trim());
    }
    let n_cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("unknown");
    let _ = write!(text, "{n_cores} cores, load {load} when the last figure was done.");
    text
}

/// The middle one of `values`, of which there is one at least.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The largest of `values`: on a shared machine, neighbours only ever take away from a rate.
pub(crate) fn best(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}
