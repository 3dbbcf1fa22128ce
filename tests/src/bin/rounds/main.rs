//! What a federation's rounds cost, with the figure of somebody else beside each: `make bench-rounds`.
//!
//! Criterion measures one function many times; here whole processes are measured a few times, so each
//! figure has a module of its own that ends in rows of one table.  A figure that fails is a row that says
//! why, and the others are still measured.

mod busy;
mod fold;
mod link;
mod memory;
mod peers;
mod recovery;
mod round;
mod site;
mod table;
mod transport;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use table::{Row, Table};

/// One figure: its name on the command line, and what measures it.
type Figure = (&'static str, fn() -> anyhow::Result<Vec<Row>>);

const FIGURES: [Figure; 7] = [
    ("fold", fold::measure),
    ("transport", transport::measure),
    ("link", link::measure),
    ("round", round::measure),
    ("recovery", recovery::measure),
    ("busy", busy::measure),
    ("memory", memory::measure),
];

const USAGE: &str = "usage: comity-bench-rounds [--out FILE.md] [FIGURE...]\nfigures: fold transport link round recovery busy memory (all)";

fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let (mut out, mut wanted) = (None::<PathBuf>, Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--out" => out = Some(args.next().context(USAGE)?.into()),
            // The other process of `transport`.
            "serve-raw" => return transport::serve_raw().map(|()| ExitCode::SUCCESS),
            name if FIGURES.iter().any(|(known, _)| *known == name) => wanted.push(arg),
            _ => bail!(USAGE),
        }
    }
    let mut table = Table::new();
    for (name, measure) in FIGURES {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            eprintln!("{name} …");
            table.extend(measure().unwrap_or_else(|error| vec![Row::failed(name, &error)]));
            // After each, so that an interrupted run leaves what it has found.
            if let Some(out) = &out {
                std::fs::write(out, table.to_string())?;
            }
        }
    }
    print!("{table}");
    Ok(if table.all_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
