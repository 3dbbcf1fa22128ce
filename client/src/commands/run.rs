//! `comity-client run list|show|approve|refuse`: the runs that were offered here, and what the steward decides;
//! works while the node runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_certs::Clock;
use comity_federation::{Approval, Circumstances, PlanDigest, RunId};
use serde_json::{Value, json};

use crate::config;
use crate::decisions::{self, Handed};
use crate::link::Credentials;
use crate::store::{Folded, Part, journal_path};

/// How long a command waits for the node to take its decision; the node looks each half second.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Lists the runs that were offered, oldest first.
pub fn list(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let folded = read(&settings)?;
    let mut runs: Vec<(&RunId, &Part)> = folded.parts.iter().collect();
    runs.sort_by_key(|(_, part)| part.offered);
    if as_json {
        let runs: Vec<Value> =
            runs.iter().map(|(run, part)| summary(&settings, run, part)).collect();
        println!("{}", serde_json::to_string_pretty(&runs)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["run", "plan", "purpose", "ordered by", "standing", "decision"]);
    for (run, part) in runs {
        table.add_row([
            run.to_string(),
            part.participant.plan().short(),
            part.plan.purpose.clone(),
            part.ordered_by().to_owned(),
            standing(&settings, part),
            part.decision.as_ref().map(decisions::Decision::words).unwrap_or_default(),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Shows one run, and what the policy says of it.
pub fn show(path: &Path, run: &RunId, as_json: bool) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let folded = read(&settings)?;
    let part = part(&folded, run)?;
    let client = Credentials::read(&settings.certificates(), &Clock::system())?.client_id()?;
    let findings = settings.policy.findings(&part.plan, &client, Circumstances::default());
    if as_json {
        let mut shown = summary(&settings, run, part);
        shown["findings"] = serde_json::to_value(&findings)?;
        shown["whole_plan"] = serde_json::to_value(&*part.plan)?;
        println!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(());
    }
    println!("run       {run}");
    println!("plan      {} ({})", part.plan.name, part.participant.plan());
    println!("purpose   {}", part.plan.purpose);
    println!("ordered   by {}", part.ordered_by());
    for consent in &part.consents {
        println!("consent   of {}", consent.consent.by);
    }
    println!("standing  {}", standing(&settings, part));
    if let Some(decision) = &part.decision {
        println!("decision  {}", decision.words());
    }
    for finding in findings {
        let mark = if finding.holds { "ok  " } else { "NO  " };
        println!("{mark}      {}: {}", finding.rule, finding.says);
    }
    if waits(&settings, part) {
        println!(
            "\nIt waits for you: `comity-client run approve {run} --plan {}`, or `run refuse {run} --reason …`",
            part.participant.plan().short()
        );
    }
    Ok(())
}

/// Approves or refuses `run`; about `plan`, if it is given, as the beginning of its digest.
pub fn decide(
    path: &Path,
    run: &RunId,
    plan: Option<&str>,
    approved: bool,
    reason: &str,
    as_json: bool,
) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    ensure!(
        approved || !reason.trim().is_empty(),
        "a refusal needs a reason, which reaches the operator: --reason \"…\""
    );
    let folded = read(&settings)?;
    let part = part(&folded, run)?;
    let digest = part.participant.plan();
    check_shown(run, digest, plan)?;
    if let Some(ended) = part.participant.ended() {
        bail!("run {run} is over ({ended}); there is nothing to decide");
    }
    let state = settings.state();
    let n_before = folded.n_decisions(run);
    let at = Clock::system().now();
    let reason = reason.trim().to_owned();
    Handed { run: run.clone(), plan: digest, approved, reason, at }.hand_over(&state)?;
    let file = decisions::path(&state, run);
    let end = Instant::now() + TAKEN_TIMEOUT;
    while file.exists() && Instant::now() < end {
        std::thread::sleep(LOOK_PAUSE);
    }
    let taken = !file.exists();
    if taken && read(&settings)?.n_decisions(run) == n_before {
        bail!(
            "the node did not take the decision: the run has changed since it was shown, or is over; its log says more"
        );
    }
    let what = if approved { "approved" } else { "refused" };
    if as_json {
        println!("{}", json!({ "run": run, "plan": digest, "approved": approved, "taken": taken }));
    } else if taken {
        println!("run {run} {what}");
    } else {
        println!("run {run} will be {what} when the node runs: `comity-client start`");
    }
    Ok(())
}

/// Whether what is decided about is what was shown.
fn check_shown(run: &RunId, digest: PlanDigest, shown: Option<&str>) -> anyhow::Result<()> {
    let Some(shown) = shown else { return Ok(()) };
    ensure!(
        shown.len() >= 8 && digest.to_string().starts_with(shown),
        "run {run} has changed since it was shown: its plan is {digest}, not {shown}; look at it again with \
         `comity-client run show {run}`"
    );
    Ok(())
}

fn part<'a>(folded: &'a Folded, run: &RunId) -> anyhow::Result<&'a Part> {
    folded.parts.get(run).with_context(|| {
        format!("run {run} was not offered here; `comity-client run list` shows those that were")
    })
}

/// Whether the steward has to decide.
fn waits(settings: &config::Node, part: &Part) -> bool {
    settings.policy.approval == Approval::Ask
        && part.decision.is_none()
        && part.participant.standing() == "offered"
}

fn standing(settings: &config::Node, part: &Part) -> String {
    match part.participant.ended() {
        Some(ended) => format!("ended: {ended}"),
        None if waits(settings, part) => "waits for the steward".to_owned(),
        None => match part.participant.declined() {
            Some(reason) => format!("declined: {reason}"),
            None => part.participant.standing().to_owned(),
        },
    }
}

fn summary(settings: &config::Node, run: &RunId, part: &Part) -> Value {
    json!({
        "run": run,
        "name": part.plan.name,
        "plan": part.participant.plan(),
        "purpose": part.plan.purpose,
        "ordered_by": part.ordered_by(),
        "consents": part.consents.iter().map(|c| &c.consent.by).collect::<Vec<_>>(),
        "offered_ms": part.offered,
        "standing": part.participant.standing(),
        "waits_for_steward": waits(settings, part),
        "declined": part.participant.declined(),
        "ended": part.participant.ended(),
        "decision": part.decision,
    })
}

/// What the node's journal says, without disturbing the node.
fn read(settings: &config::Node) -> anyhow::Result<Folded> {
    let journal = journal_path(&settings.state());
    let mut folded = Folded::default();
    if journal.exists() {
        comity_journal::read(&journal, |record| folded.fold(record))
            .with_context(|| format!("{} cannot be read", journal.display()))?;
    }
    Ok(folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_about_another_plan_than_the_one_shown_is_not_taken() {
        let run: RunId = "sample-1".parse().unwrap();
        let digest = PlanDigest([0xab; 32]);
        assert!(check_shown(&run, digest, None).is_ok());
        assert!(check_shown(&run, digest, Some(&digest.to_string())).is_ok());
        assert!(check_shown(&run, digest, Some("abababab")).is_ok());
        for other in ["abababac", "ab", "", "ABABABAB"] {
            let said = check_shown(&run, digest, Some(other)).unwrap_err().to_string();
            assert!(said.contains("changed since it was shown"), "{said}");
        }
    }
}
