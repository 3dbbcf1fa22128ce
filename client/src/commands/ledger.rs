//! `comity-client ledger show`: what has been spent on this data set, and by which runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_privacy::{BoundKind, Ledger, LedgerEntry};
use serde_json::json;

use crate::config;
use crate::store::{Folded, journal_path};

/// Prints the ledger; works while the node is running.
pub(crate) fn show(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let journal = journal_path(&settings.state());
    let mut folded = Folded::default();
    if journal.exists() {
        comity_journal::read(&journal, |record| folded.fold(record))
            .with_context(|| format!("{} cannot be read", journal.display()))?;
    }
    let ledger = Ledger::replay(settings.limit(), folded.ledger)?;
    let delta = settings.budget.map_or(1e-6, |budget| budget.delta.get());
    let spent = ledger.spent_at(delta);
    let by_run = ledger.spent_by_run(delta);
    let mut rounds: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for entry in ledger.entries() {
        match entry {
            LedgerEntry::Reserved { key, .. } => rounds.entry(&key.run).or_default().0 += 1,
            LedgerEntry::Committed { key, .. } => rounds.entry(&key.run).or_default().1 += 1,
            LedgerEntry::Opened { .. }
            | LedgerEntry::Reopened { .. }
            | LedgerEntry::Closed { .. } => {}
        }
    }
    let counts = |run: &str| rounds.get(run).copied().unwrap_or_default();
    if as_json {
        let runs: Vec<_> = by_run
            .iter()
            .map(|(run, report)| {
                let (reserved, released) = counts(run);
                json!({ "run": run, "rounds_reserved": reserved, "rounds_released": released, "epsilon": report })
            })
            .collect();
        let output = json!({
            "records_declared": settings.config.data.records,
            "delta": delta,
            "budget": settings.budget,
            "without_dp_allowed": settings.config.privacy.without_dp,
            "spent": spent,
            "runs": runs,
            "entries": ledger.entries(),
        });
        println!("{}", serde_json::to_string_pretty(&output)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["run", "rounds reserved", "released", "epsilon", "bound"]);
    for (run, report) in &by_run {
        let (reserved, released) = counts(run);
        table.add_row([
            run.clone(),
            reserved.to_string(),
            released.to_string(),
            format!("{:.4}", report.epsilon),
            bound(report.bound).to_owned(),
        ]);
    }
    println!("{table}");
    match settings.budget {
        Some(budget) => println!(
            "spent: epsilon {:.4} of {} at delta {delta:e} (unit: record, add or remove one)",
            spent.epsilon,
            budget.epsilon.get()
        ),
        None => {
            println!("spent: epsilon {:.4} at delta {delta:e}; no budget is set", spent.epsilon)
        }
    }
    Ok(())
}

fn bound(kind: BoundKind) -> &'static str {
    match kind {
        BoundKind::Rdp => "RDP",
        BoundKind::ExactGaussian => "exact Gaussian",
    }
}
