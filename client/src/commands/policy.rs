//! `comity-client policy check|explain`: whether the steward's file can be read, and what it means for a plan.

use std::path::Path;

use anyhow::Context as _;
use comity_certs::Clock;
use comity_federation::{Approval, Circumstances, Plan};
use comity_privacy::Ledger;
use serde_json::json;

use super::epsilon;
use crate::config;
use crate::link::Credentials;
use crate::store::{Folded, journal_path};
use crate::year;

/// Reads the policy and says what it allows.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let policy = &settings.policy;
    println!("ok   {}", settings.base.join(&settings.config.policy).display());
    for operator in &policy.operators {
        println!("     orders of {} are taken, with the key {}", operator.name, operator.key);
    }
    println!("     for {}", policy.purposes.join(" | "));
    let models: Vec<String> = policy.models.iter().map(ToString::to_string).collect();
    println!("     models: {}, up to {} parameters", models.join(", "), policy.parameters_max);
    match policy.budget {
        Some(budget) => println!(
            "     epsilon {} at delta {} for this data set; {} a run, {} a year",
            budget.epsilon.get(),
            budget.delta.get(),
            policy.epsilon_run_max,
            policy.epsilon_year_max
        ),
        None => println!("     no private run is allowed"),
    }
    let without = if policy.without_dp_allowed { "allowed" } else { "not allowed" };
    println!("     runs without differential privacy are {without}");
    println!(
        "     at least {} institutions of {} countries in a round; {} countries have to sign",
        policy.clients_min, policy.countries_min, policy.consents_countries_min
    );
    if let Some(hours) = policy.hours {
        println!("     rounds begin from {hours}");
    }
    println!("     at most {} bytes of updates leave in a round", policy.bytes_out_round_max);
    println!(
        "     plans that are allowed {}",
        match policy.approval {
            Approval::Auto => "are agreed to at once",
            Approval::Ask => "wait for the steward",
        }
    );
    Ok(())
}

/// Says, rule by rule, what would happen if the plan at `plan` were offered here; whether it would be allowed.
pub fn explain(path: &Path, plan: &Path, as_json: bool) -> anyhow::Result<bool> {
    let settings = config::Node::read(path)?;
    let text = std::fs::read_to_string(plan)
        .with_context(|| format!("{} cannot be read", plan.display()))?;
    let plan = Plan::from_toml(&text).with_context(|| plan.display().to_string())?;
    let client = Credentials::read(&settings.certificates(), &Clock::system())?.client_id()?;
    let journal = journal_path(&settings.state());
    let mut folded = Folded::default();
    if journal.exists() {
        comity_journal::read(&journal, |record| folded.fold(record))
            .with_context(|| format!("{} cannot be read", journal.display()))?;
    }
    let ledger = Ledger::replay(settings.limit(), folded.ledger)?;
    let named = plan.client(&client);
    let privacy = named.map(|named| plan.privacy_plan(named)).transpose()?.flatten();
    let now = Clock::system().now();
    let epsilon_year = privacy.as_ref().map(|privacy| {
        year::epsilon(&ledger, &folded.opened, now, None, privacy.schedule().mechanisms())
    });
    let findings = settings.policy.findings(&plan, &client, Circumstances { epsilon_year });
    let whole = privacy.as_ref().map(|privacy| ledger.forecast(privacy.schedule().mechanisms()));
    let fits = match (&whole, settings.policy.budget) {
        (Some(whole), Some(budget)) => whole.epsilon <= budget.epsilon.get(),
        _ => true,
    };
    let allowed = fits && findings.iter().all(|finding| finding.holds);
    if as_json {
        let output = json!({
            "plan": plan.name,
            "digest": plan.digest(),
            "client": client,
            "allowed": allowed,
            "budget_has_room": fits,
            "epsilon_with_all_runs": whole,
            "findings": findings,
        });
        println!("{}", serde_json::to_string_pretty(&output)?);
        return Ok(allowed);
    }
    println!("plan {} ({}) at {client}", plan.name, plan.digest().short());
    for finding in &findings {
        println!(
            "{} {}: {}",
            if finding.holds { "ok  " } else { "NO  " },
            finding.rule,
            finding.says
        );
    }
    if let Some(whole) = whole {
        let mark = if fits { "ok  " } else { "NO  " };
        println!(
            "{mark} ledger: with all runs of this data set, epsilon {}{}",
            epsilon(whole.epsilon),
            if fits { "" } else { ": the budget has no room for it" }
        );
    }
    println!("{}", if allowed { "the plan is allowed" } else { "the plan would be declined" });
    Ok(allowed)
}
