//! `comity-coordinator receipts list|verify|export|compare`: what the coordinator signed and clients countersigned,
//! from its own journal; needs no network and works while it serves.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_certs::Verifier;
use comity_federation::{
    Comparison, Countersignature, Export, Plan, RoundRecord, Run, RunId, SignedRecord,
};
use comity_proto::convert::{countersignature, signature};
use comity_proto::v1;
use serde_json::json;

use super::operator::{open, refused};
use super::run::block_on;
use crate::config::{Config, Home};
use crate::store::Entry;

/// What the journal holds of one run.
struct Papers {
    export: Export,
    /// The machine, folded from the journal's steps.
    run: Run,
}

fn verifier(home: &Home) -> anyhow::Result<Verifier> {
    let root = home.certs().join("root.pem");
    let root_pem = std::fs::read_to_string(&root)
        .with_context(|| format!("{} cannot be read", root.display()))?;
    Ok(Verifier::new(&Config::read(home)?.federation, &root_pem)?)
}

/// The papers of all runs, or of `run`, oldest first.
fn read(home: &Home, run: Option<&RunId>) -> anyhow::Result<Vec<Papers>> {
    let federation = Config::read(home)?.federation;
    let path = home.journal();
    ensure!(
        path.exists(),
        "there is no journal at {}; give the coordinator's folder with --dir",
        path.display()
    );
    let (mut order, mut all) = (Vec::new(), BTreeMap::<RunId, Papers>::new());
    comity_journal::read(&path, |record| {
        let never = |run: &RunId| record.refuse(format!("run {run} was never launched"));
        match record.json::<Entry>()? {
            Entry::Membership { .. } => {}
            Entry::Launched { run, plan, start, now, .. } => {
                let (by, federation) = ("coordinator".to_owned(), federation.clone());
                let export = Export::new(by, federation, run.clone(), (*plan).clone());
                order.push(run.clone());
                let machine = Run::new(run.clone(), *plan, start, now);
                all.insert(run, Papers { export, run: machine });
            }
            Entry::Stepped { run, now, event, .. } => {
                let papers = all.get_mut(&run).ok_or_else(|| never(&run))?;
                papers.run.step(event, now).map_err(|error| record.refuse(error))?;
            }
            Entry::Recorded { record: of_round, signature } => {
                let papers = all.get_mut(&of_round.run).ok_or_else(|| never(&of_round.run))?;
                let countersignatures = Vec::new();
                let signed = SignedRecord { record: *of_round, signature, countersignatures };
                papers.export.records.push(signed);
            }
            Entry::Countersigned { run, round, client, signature, .. } => {
                let papers = all.get_mut(&run).ok_or_else(|| never(&run))?;
                let signed = papers.export.records.iter_mut().find(|s| s.record.round == round);
                let signed = signed.ok_or_else(|| {
                    record.refuse(format!("round {round} of run {run} has no record to be signed"))
                })?;
                signed.countersignatures.push(Countersignature { client, signature });
            }
        }
        Ok(())
    })
    .with_context(|| format!("{} cannot be relied on", path.display()))?;
    for signed in all.values_mut().flat_map(|papers| &mut papers.export.records) {
        signed.countersignatures.sort_by(|a, b| a.client.cmp(&b.client));
    }
    let wanted = order.iter().filter(|launched| run.is_none_or(|run| run == *launched));
    let papers: Vec<Papers> = wanted.filter_map(|run| all.remove(run)).collect();
    if let (Some(run), true) = (run, papers.is_empty()) {
        anyhow::bail!("there is no run {run}; `receipts list` shows those there are");
    }
    Ok(papers)
}

/// Lists the rounds with what was accepted and who signed, one contribution a line.
pub fn list(home: &Home, run: Option<&RunId>, as_json: bool) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["run", "round", "record", "client", "update", "weight", "countersigned"]);
    let mut lines = Vec::new();
    for papers in read(home, run)? {
        for SignedRecord { record, countersignatures, .. } in &papers.export.records {
            for client in &record.cohort {
                let counted = record.contributions.iter().find(|c| c.client == *client);
                let missing = record.missing.iter().find(|(missing, _)| missing == client);
                let signed = countersignatures.iter().any(|c| c.client == *client);
                lines.push(json!({
                    "run": record.run,
                    "round": record.round,
                    "record": record.digest(),
                    "client": client,
                    "update": counted.map(|c| c.update),
                    "weight": counted.map(|c| c.weight),
                    "missing": missing.map(|(_, reason)| reason),
                    "countersigned": signed,
                }));
                let update = counted.map(|c| c.update.short());
                table.add_row([
                    record.run.to_string(),
                    record.round.to_string(),
                    record.digest().short(),
                    client.to_string(),
                    update
                        .or_else(|| missing.map(|(_, reason)| reason.clone()))
                        .unwrap_or_default(),
                    counted.map(|c| c.weight.to_string()).unwrap_or_default(),
                    if signed { "yes" } else { "-" }.to_owned(),
                ]);
            }
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        println!("{table}");
    }
    Ok(())
}

/// Checks every signature and link, and that each record says what the journal's own steps say.
///
/// # Errors
/// If anything is not in order, after it was listed.
pub fn verify(home: &Home, run: Option<&RunId>, as_json: bool) -> anyhow::Result<()> {
    let verifier = verifier(home)?;
    let mut lines = Vec::new();
    let mut all_in_order = true;
    for Papers { export, run } in read(home, run)? {
        let mut wrong = Vec::new();
        let checked = match verifier.export(&export) {
            Ok(checked) => Some(checked),
            Err(error) => {
                wrong.push(error.to_string());
                None
            }
        };
        let mut previous = None;
        for round in run.rounds_from(0).iter().filter(|round| round.model.is_some()) {
            let (id, plan) = (run.id(), run.plan_digest());
            let expected = RoundRecord::of(&export.federation, id, plan, previous, round);
            let held = export.records.iter().find(|signed| signed.record.round == round.round);
            match held {
                // The next start signs what a crash left out.
                None => wrong.push(format!("round {} has no record yet", round.round)),
                Some(held) if Some(&held.record) != expected.as_ref() => wrong.push(format!(
                    "the record of round {} says otherwise than the journal's steps",
                    round.round
                )),
                Some(_) => {}
            }
            previous = held.map(|held| held.record.digest());
        }
        all_in_order &= wrong.is_empty();
        lines.push(json!({
            "run": export.run,
            "ok": wrong.is_empty(),
            "records": checked.map(|c| c.n_records),
            "countersignatures": checked.map(|c| c.n_countersignatures),
            "wrong": wrong,
        }));
        if as_json {
            continue;
        }
        match (checked, wrong.is_empty()) {
            (Some(checked), true) => println!(
                "ok   run {}: {} records signed and chained, as the journal's steps say; {} signatures of clients under \
                 them",
                export.run, checked.n_records, checked.n_countersignatures
            ),
            _ => wrong.iter().for_each(|wrong| println!("!!   run {}: {wrong}", export.run)),
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else if lines.is_empty() {
        println!("ok   no run was launched yet");
    }
    ensure!(all_in_order, "not all records are in order");
    Ok(())
}

/// Writes the papers of `run` to a file for its members: from the journal or, on an operator's own machine, from
/// the coordinator, under `plan`.
pub fn export(home: &Home, run: &RunId, plan: Option<&Path>, out: &Path) -> anyhow::Result<()> {
    let export = match plan {
        Some(plan) => fetch(home, run, plan)?,
        None => read(home, Some(run))?.swap_remove(0).export,
    };
    std::fs::write(out, export.to_file())
        .with_context(|| format!("{} cannot be written", out.display()))?;
    println!("{} records written to {}", export.records.len(), out.display());
    Ok(())
}

fn fetch(home: &Home, run: &RunId, plan: &Path) -> anyhow::Result<Export> {
    let text = std::fs::read_to_string(plan)
        .with_context(|| format!("{} cannot be read", plan.display()))?;
    let plan = Plan::from_toml(&text).with_context(|| plan.display().to_string())?;
    let by = "coordinator".to_owned();
    let mut export = Export::new(by, Config::read(home)?.federation, run.clone(), plan);
    block_on(async {
        let request = v1::ExportRecordsRequest { run_id: run.to_string() };
        let mut parts =
            open(home).await?.export_records(request).await.map_err(refused)?.into_inner();
        while let Some(part) = parts.message().await.map_err(refused)? {
            let record = part.record.context("a part of the export has no record")?;
            let countersignatures = part.countersignatures.into_iter().map(countersignature);
            export.records.push(SignedRecord {
                record: RoundRecord::from_json(&record.record_json)?,
                signature: signature(record.signature)?,
                countersignatures: countersignatures.collect::<Result<_, _>>()?,
            });
        }
        Ok(())
    })?;
    verifier(home)?.export(&export)?;
    Ok(export)
}

/// Compares what the coordinator holds with a client's export.
///
/// # Errors
/// If they do not agree.
pub fn compare(home: &Home, file: &Path, as_json: bool) -> anyhow::Result<()> {
    let bytes =
        std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let theirs = Export::from_file(&bytes).with_context(|| file.display().to_string())?;
    verifier(home)?.export(&theirs).with_context(|| file.display().to_string())?;
    let ours = read(home, Some(&theirs.run))?.swap_remove(0).export;
    let comparison = Comparison::of(&ours, &theirs);
    if as_json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
    } else {
        println!("{comparison}");
    }
    ensure!(comparison.difference.is_none(), "the two sides hold different records");
    Ok(())
}
