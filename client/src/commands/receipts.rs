//! `comity-client receipts list|verify|export|compare`: what the coordinator signed, from the node's own journal;
//! needs no network and works while the node runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_certs::{CertificateSummary, Verifier};
use comity_federation::{
    ClientId, Comparison, Contribution, Countersignature, Export, ParticipantEvent, RecordBook,
    RunId, SignedReceipt, SignedRecord, Standing, Terms,
};
use comity_journal::JournalError;
use serde_json::json;

use crate::config;
use crate::store::{Entry, journal_path};

/// What the journal holds of one run.
struct Papers {
    export: Export,
    released: Vec<Contribution>,
    /// Follows the run as the node did.
    book: RecordBook,
    /// Why the coordinator was not believed any more.
    breach: Option<String>,
    /// What does not follow from what came before.
    wrong: Vec<String>,
}

/// The node whose journal is read.
struct Member {
    id: ClientId,
    federation: String,
    verifier: Verifier,
}

impl Member {
    fn read(settings: &config::Node) -> anyhow::Result<Self> {
        let dir = settings.certificates();
        let file = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("{} cannot be read", path.display()))
        };
        // It need not be valid today: papers are checked at the times that they name.
        let identity = CertificateSummary::of_pem(&file("certificate.pem")?)?.identity;
        let id = identity.client().cloned().context("the certificate is not of a client")?;
        let verifier = Verifier::new(&identity.federation, &file("root.pem")?)?;
        Ok(Self { id, federation: identity.federation, verifier })
    }
}

impl Papers {
    fn terms<'a>(&'a self, member: &'a Member) -> Terms<'a> {
        Terms {
            federation: &member.federation,
            run: &self.export.run,
            plan: &self.export.plan,
            plan_digest: self.export.plan.digest(),
            me: Some(&member.id),
        }
    }

    fn receipt(&mut self, member: &Member, signed: SignedReceipt) {
        if let Err(breach) = self.book.check_receipt(&self.terms(member), &signed.receipt) {
            self.wrong.push(breach.to_string());
        }
        self.book.take_receipt(&signed.receipt);
        self.export.receipts.push(signed);
    }

    fn record(&mut self, member: &Member, signed: SignedRecord, witnesses: Vec<Countersignature>) {
        match self.book.check(&self.terms(member), &signed.record) {
            Ok(Standing::Next) => {}
            Ok(Standing::Held) => {
                self.wrong.push(format!("round {} is recorded twice", signed.record.round));
            }
            Err(breach) => self.wrong.push(breach.to_string()),
        }
        let mut book = std::mem::take(&mut self.book);
        book.take(&self.terms(member), &signed.record);
        self.book = book;
        if let Some(before) = self.export.records.last_mut() {
            before.countersignatures.extend(witnesses);
        }
        self.export.records.push(signed);
    }
}

/// The papers of all runs, or of `run`, in the order of the offers.
fn read(
    settings: &config::Node,
    member: &Member,
    run: Option<&RunId>,
) -> anyhow::Result<Vec<Papers>> {
    let journal = journal_path(&settings.state());
    ensure!(
        journal.exists(),
        "there is no journal at {}; a node writes it when it starts",
        journal.display()
    );
    let (mut order, mut all) = (Vec::new(), BTreeMap::<RunId, Papers>::new());
    comity_journal::read(&journal, |record| {
        let never = |run: &RunId| record.refuse(format!("run {run} was never offered"));
        let mut with =
            |run: &RunId, take: &mut dyn FnMut(&mut Papers)| -> Result<(), JournalError> {
                all.get_mut(run).map(take).ok_or_else(|| never(run))
            };
        match record.json::<Entry>()? {
            Entry::Offered { run, plan, .. } => {
                let (by, federation) = (member.id.to_string(), member.federation.clone());
                order.push(run.clone());
                all.insert(
                    run.clone(),
                    Papers {
                        export: Export::new(by, federation, run, *plan),
                        released: Vec::new(),
                        book: RecordBook::default(),
                        breach: None,
                        wrong: Vec::new(),
                    },
                );
                Ok(())
            }
            Entry::Released { run, event: ParticipantEvent::Trained { contribution }, .. } => {
                with(&run, &mut |papers| {
                    papers.book.released(&contribution);
                    papers.released.push(contribution.clone());
                })
            }
            Entry::Receipt { receipt, signature } => with(&receipt.run.clone(), &mut |papers| {
                let (receipt, signature) = ((*receipt).clone(), signature.clone());
                papers.receipt(member, SignedReceipt { receipt, signature });
            }),
            Entry::Record { client, record, signature, countersignature, witnesses } => {
                with(&record.run.clone(), &mut |papers| {
                    let (client, signature) = (client.clone(), signature.clone());
                    let own = Countersignature { client, signature: countersignature.clone() };
                    let record = (*record).clone();
                    let signed = SignedRecord { record, signature, countersignatures: vec![own] };
                    papers.record(member, signed, witnesses.clone());
                })
            }
            Entry::Breach { run, reason, .. } => with(&run, &mut |papers| {
                papers.breach.get_or_insert_with(|| reason.clone());
            }),
            _ => Ok(()),
        }
    })
    .with_context(|| format!("{} cannot be relied on", journal.display()))?;
    let wanted = order.iter().filter(|offered| run.is_none_or(|run| run == *offered));
    let papers: Vec<Papers> = wanted.filter_map(|run| all.remove(run)).collect();
    if let (Some(run), true) = (run, papers.is_empty()) {
        anyhow::bail!(
            "this node was never offered run {run}; `receipts list` shows the runs it knows"
        );
    }
    Ok(papers)
}

/// Lists what was released, receipted and recorded, one round a line.
pub fn list(path: &Path, run: Option<&RunId>, as_json: bool) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let member = Member::read(&settings)?;
    let runs = read(&settings, &member, run)?;
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["run", "round", "record", "own update", "receipt", "signed by"]);
    let mut lines = Vec::new();
    for papers in &runs {
        let receipt = |round: u32| papers.export.receipts.iter().find(|s| s.receipt.round == round);
        let rounds = papers.export.records.iter().map(|signed| signed.record.round);
        let released = papers.released.iter().map(|contribution| contribution.round);
        let mut rounds: Vec<u32> = rounds.chain(released).collect();
        rounds.sort_unstable();
        rounds.dedup();
        for round in rounds {
            let signed = papers.export.records.iter().find(|s| s.record.round == round);
            let update = papers.released.iter().find(|c| c.round == round).map(|c| c.update);
            let receipt = receipt(round).map(|signed| signed.receipt.accepted);
            let by: Vec<&ClientId> =
                signed.iter().flat_map(|s| &s.countersignatures).map(|c| &c.client).collect();
            lines.push(json!({
                "run": papers.export.run,
                "round": round,
                "record": signed.map(|signed| signed.record.digest()),
                "model": signed.map(|signed| signed.record.model),
                "update": update,
                "receipt_ms": receipt,
                "countersigned_by": by,
            }));
            let names: Vec<String> = by.iter().map(ToString::to_string).collect();
            table.add_row([
                papers.export.run.to_string(),
                round.to_string(),
                signed.map(|signed| signed.record.digest().short()).unwrap_or_default(),
                update.map(|update| update.short()).unwrap_or_default(),
                receipt.map_or("-", |_| "yes").to_owned(),
                names.join(", "),
            ]);
        }
    }
    let breaches = runs.iter().filter_map(|p| Some((&p.export.run, p.breach.as_ref()?)));
    if as_json {
        let breaches: Vec<_> =
            breaches.map(|(run, reason)| json!({ "run": run, "reason": reason })).collect();
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({ "rounds": lines, "breaches": breaches }))?
        );
        return Ok(());
    }
    println!("{table}");
    for (run, reason) in breaches {
        println!("!!   run {run}: the coordinator is not believed any more: {reason}");
    }
    Ok(())
}

/// Checks every signature, every link, and every own release against them; returns whether all is in order.
pub fn verify(path: &Path, run: Option<&RunId>, as_json: bool) -> anyhow::Result<bool> {
    let settings = config::Node::read(path)?;
    let member = Member::read(&settings)?;
    let mut lines = Vec::new();
    let mut all_in_order = true;
    for papers in read(&settings, &member, run)? {
        let run = &papers.export.run;
        let mut wrong = papers.wrong;
        let checked = match member.verifier.export(&papers.export) {
            Ok(checked) => Some(checked),
            Err(error) => {
                wrong.push(error.to_string());
                None
            }
        };
        let foreign = papers.export.receipts.iter().filter(|s| s.receipt.client != member.id);
        wrong.extend(foreign.map(|s| format!("a receipt is of {}", s.receipt.client)));
        wrong.extend(papers.breach);
        let receipted = |c: &&Contribution| {
            papers.export.receipts.iter().any(|signed| signed.receipt.update == c.update)
        };
        let n_receipted = papers.released.iter().filter(receipted).count();
        all_in_order &= wrong.is_empty();
        lines.push(json!({
            "run": run,
            "ok": wrong.is_empty(),
            "records": checked.map(|c| c.n_records),
            "countersignatures": checked.map(|c| c.n_countersignatures),
            "receipts": checked.map(|c| c.n_receipts),
            "released": papers.released.len(),
            "receipted": n_receipted,
            "wrong": wrong,
        }));
        if as_json {
            continue;
        }
        match (checked, wrong.is_empty()) {
            (Some(checked), true) => println!(
                "ok   run {run}: {} records signed and chained, {} signatures of clients under them; {} of {} own \
                 updates with a receipt, each counted or missing with a reason",
                checked.n_records,
                checked.n_countersignatures,
                n_receipted,
                papers.released.len()
            ),
            _ => wrong.iter().for_each(|wrong| println!("!!   run {run}: {wrong}")),
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else if lines.is_empty() {
        println!("ok   this node was offered no run yet");
    }
    Ok(all_in_order)
}

/// Writes what this node holds of `run` to a file for another member.
pub fn export(path: &Path, run: &RunId, out: &Path) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let member = Member::read(&settings)?;
    let papers = read(&settings, &member, Some(run))?;
    for papers in papers {
        std::fs::write(out, papers.export.to_file())
            .with_context(|| format!("{} cannot be written", out.display()))?;
        let (n_records, n_receipts) = (papers.export.records.len(), papers.export.receipts.len());
        println!("{n_records} records and {n_receipts} receipts written to {}", out.display());
    }
    Ok(())
}

/// Compares what this node holds with the export of another side; returns whether they agree.
pub fn compare(path: &Path, file: &Path, as_json: bool) -> anyhow::Result<bool> {
    let settings = config::Node::read(path)?;
    let member = Member::read(&settings)?;
    let bytes =
        std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let theirs = Export::from_file(&bytes).with_context(|| file.display().to_string())?;
    member.verifier.export(&theirs).with_context(|| file.display().to_string())?;
    let ours = read(&settings, &member, Some(&theirs.run))?;
    let ours = &ours.first().context("the run is there, or it was refused above")?.export;
    let comparison = Comparison::of(ours, &theirs);
    if as_json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
    } else {
        println!("{comparison}");
    }
    Ok(comparison.difference.is_none())
}
