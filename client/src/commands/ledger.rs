//! `comity-client ledger show|forecast`: what has been spent on this data set, by which runs, and what
//! one more would cost.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_certs::Clock;
use comity_federation::{Circumstances, Plan};
use comity_privacy::{Ledger, LedgerEntry, Mechanism};
use serde_json::json;

use super::{bound, epsilon};
use crate::config;
use crate::link::Credentials;
use crate::store::{Folded, journal_path};

/// Prints the ledger; works while the node is running.
pub fn show(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let ledger = read(&settings)?;
    let delta = settings.policy.budget.map_or(1e-6, |budget| budget.delta.get());
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
            "budget": settings.policy.budget,
            "without_dp_allowed": settings.policy.without_dp_allowed,
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
            epsilon(report.epsilon),
            bound(report.bound).to_owned(),
        ]);
    }
    println!("{table}");
    match settings.policy.budget {
        Some(budget) => println!(
            "spent: epsilon {} of {} at delta {delta:e}",
            epsilon(spent.epsilon),
            budget.epsilon.get()
        ),
        None => {
            println!(
                "spent: epsilon {} at delta {delta:e}; no budget is set",
                epsilon(spent.epsilon)
            )
        }
    }
    Ok(())
}

/// What a run under `plan` would cost this data set, and whether the budget has room for it.
pub fn forecast(path: &Path, plan: &Path, as_json: bool) -> anyhow::Result<bool> {
    let settings = config::Node::read(path)?;
    let text = std::fs::read_to_string(plan)
        .with_context(|| format!("{} cannot be read", plan.display()))?;
    let plan = Plan::from_toml(&text)?;
    let client = Credentials::read(&settings.certificates(), &Clock::system())?.client_id()?;
    settings.policy.review(&plan, &client, Circumstances::default())?;
    let named = plan.client(&client).expect("the policy checked that the plan names us");
    let ledger = read(&settings)?;
    let delta = ledger.limit().delta();
    let before = ledger.forecast(&[]).epsilon;
    let schedule = match plan.privacy_plan(named)? {
        Some(privacy) => privacy.schedule().mechanisms().to_vec(),
        None => vec![Mechanism::Exempt],
    };
    let alone = Ledger::new(ledger.limit()).forecast(&schedule);
    let after = ledger.forecast(&schedule);
    let fits = settings.policy.budget.is_none_or(|budget| after.epsilon <= budget.epsilon.get());
    if as_json {
        let output = json!({
            "plan": plan.name,
            "delta": delta,
            "counted_before": before,
            "alone": alone,
            "counted_after": after,
            "budget": settings.policy.budget,
            "fits": fits,
        });
        println!("{}", serde_json::to_string_pretty(&output)?);
    } else {
        println!("counted so far: epsilon {} at delta {delta:e}", epsilon(before));
        println!(
            "plan {} alone: epsilon {} ({})",
            plan.name,
            epsilon(alone.epsilon),
            bound(alone.bound)
        );
        println!("with it:        epsilon {} ({})", epsilon(after.epsilon), bound(after.bound));
        match settings.policy.budget {
            Some(budget) if fits => {
                println!("the budget of {} has room for it", budget.epsilon.get())
            }
            Some(budget) => println!(
                "the budget of {} has no room for it: ask for a plan with a smaller epsilon or fewer \
                 rounds, or let the data steward raise the budget",
                budget.epsilon.get()
            ),
            None => println!("no budget is set"),
        }
    }
    Ok(fits)
}

/// The ledger in the node's journal.
fn read(settings: &config::Node) -> anyhow::Result<Ledger> {
    let journal = journal_path(&settings.state());
    let mut folded = Folded::default();
    if journal.exists() {
        comity_journal::read(&journal, |record| folded.fold(record))
            .with_context(|| format!("{} cannot be read", journal.display()))?;
    }
    Ok(Ledger::replay(settings.limit(), folded.ledger)?)
}
