//! `comity-client egress list|show|verify|replay|export`: everything that left this institution, for its
//! steward and its regulator; needs no network and works while the node runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, LineStyle, Table};
use comity_certs::{Clock, Document, Signer, calendar, timestamp_of};
use comity_federation::{
    Contribution, ParticipantEvent, RecordDigest, RunId, Signature, Time, UpdateDigest,
};
use comity_journal::{BlobStore, Verified};
use comity_privacy::{FixedSchedule, LedgerEntry, Mechanism, Relation, epsilon as epsilon_of};
use comity_proto::v1;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::epsilon;
use crate::config;
use crate::egress::{Departure, Kind};
use crate::link::Credentials;
use crate::store::{Entry, journal_path};

/// A departure as it is listed: with its number, and what the run had cost by then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    /// Number of the journal's record.
    n: u64,
    #[serde(flatten)]
    departure: Departure,
    /// What was debited for the run so far: everything that left of it is (epsilon, delta)-DP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
}

/// What a regulator is handed: the lines, and where the journal stood, signed with the node's key.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    egress: Egress,
    signature: Signature,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Egress {
    /// Which version of this document.
    format: String,
    /// Whose node.
    identity: String,
    at: Time,
    /// Records of the journal, and the hash that seals the last of them and all before it.
    journal_records: u64,
    journal_head: RecordDigest,
    /// The delta of the lines' epsilon.
    delta: f64,
    lines: Vec<Line>,
}

const FORMAT: &str = "comity-egress/1";

/// Lists what left, oldest first: of `run`, and the `last` lines of it.
pub fn list(
    path: &Path,
    run: Option<&RunId>,
    last: Option<usize>,
    as_json: bool,
) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let mut book = Book::read(&settings)?;
    book.lines.retain(|(line, _)| run.is_none() || line.departure.run.as_ref() == run);
    let skipped = book.lines.len() - last.unwrap_or(usize::MAX).min(book.lines.len());
    book.lines.drain(..skipped);
    let lines = book.priced(delta(&settings));
    if as_json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["n", "time", "kind", "bytes", "digest", "run", "round", "epsilon so far"]);
    for right in [0, 3, 6] {
        if let Some(column) = table.column_mut(right) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let dash = || "–".to_owned();
    for line in &lines {
        let departure = &line.departure;
        table.add_row([
            line.n.to_string(),
            timestamp_of(departure.at),
            departure.kind.as_str().to_owned(),
            departure.bytes.to_string(),
            departure.digest.short(),
            departure.run.as_ref().map_or_else(dash, RunId::to_string),
            departure.round.map_or_else(dash, |round| round.to_string()),
            line.epsilon.map_or_else(dash, epsilon),
        ]);
    }
    println!("{table}");
    let bytes: u64 = lines.iter().map(|line| line.departure.bytes).sum();
    println!("{} messages, {bytes} bytes; delta {:e}", lines.len(), delta(&settings));
    Ok(())
}

/// Shows the line `n` whole, with what the message said.
pub fn show(path: &Path, n: u64, as_json: bool) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let mut book = Book::read(&settings)?;
    book.lines.retain(|(line, _)| line.n == n);
    let Some(line) = book.priced(delta(&settings)).pop() else {
        bail!("record {n} of the journal is nothing that left; `egress list` shows the numbers");
    };
    if as_json {
        println!("{}", serde_json::to_string_pretty(&line)?);
        return Ok(());
    }
    let departure = &line.departure;
    println!("n       {n}");
    println!("time    {}", timestamp_of(departure.at));
    println!("kind    {}", departure.kind.as_str());
    println!("bytes   {}", departure.bytes);
    println!("digest  {}", departure.digest);
    if let Some(run) = &departure.run {
        println!("run     {run}");
    }
    if let Some(plan) = departure.plan {
        println!("plan    {plan}");
    }
    if let Some(round) = departure.round {
        println!("round   {round}");
    }
    if let Some(offset) = departure.offset {
        println!("offset  {offset}");
    }
    if let Some(spent) = line.epsilon {
        println!("epsilon {} so far, at delta {:e}", epsilon(spent), delta(&settings));
    }
    if let Some(said) = said(departure)? {
        println!("said    {said}");
    }
    Ok(())
}

/// Checks every line: that the journal is whole, each message is what its digest says, and each update was
/// paid for and released before it left. With `export`, that this is a signed export, and, if it is of this
/// node, that the journal still says the same.
pub fn verify(path: &Path, export: Option<&Path>, root: Option<&Path>) -> anyhow::Result<()> {
    if let Some(export) = export {
        return verify_export(path, export, root);
    }
    let settings = config::Node::read(path)?;
    let book = Book::read(&settings)?;
    println!("ok   journal: {} records, each sealed by the next", book.verified.seq);
    let mut n_of_kind: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (line, _) in &book.lines {
        let departure = &line.departure;
        check(departure).with_context(|| format!("record {}", line.n))?;
        let (n, bytes) = n_of_kind.entry(departure.kind.as_str()).or_default();
        (*n, *bytes) = (*n + 1, *bytes + departure.bytes);
    }
    for (kind, (n, bytes)) in &n_of_kind {
        println!("ok   {kind}: {n} messages, {bytes} bytes, each as its digest says");
    }
    ensure!(
        book.unpaid.is_empty(),
        "updates left that no release of this node paid for: records {:?}",
        book.unpaid
    );
    println!("ok   updates: each was debited and released before it left");
    Ok(())
}

/// Writes the very bytes that left as line `n` to `out`, made again from the journal and the store.
pub fn replay(path: &Path, n: u64, out: &Path) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let book = Book::read(&settings)?;
    let (line, _) = book.lines.into_iter().find(|(line, _)| line.n == n).with_context(|| {
        format!("record {n} of the journal is nothing that left; `egress list` shows the numbers")
    })?;
    let departure = line.departure;
    check(&departure)?;
    let message = message(&departure)?.with_context(|| {
        format!("the message had {} bytes, and only its digest is kept", departure.bytes)
    })?;
    let mut file = std::fs::File::create_new(out)
        .with_context(|| format!("{} cannot be written", out.display()))?;
    file.write_all(&message)?;
    let mut n_bytes = message.len() as u64;
    if departure.kind == Kind::Update {
        let blobs = BlobStore::existing(settings.state().join("blobs"));
        let mut update = blobs.reader_of_whole(&departure.digest.0).with_context(|| {
            format!("update {} is no longer stored ([storage] updates_bytes_max)", departure.digest)
        })?;
        update.seek(SeekFrom::Start(departure.offset.unwrap_or_default()))?;
        let mut rest = Vec::new();
        update.read_to_end(&mut rest)?;
        file.write_all(&rest)?;
        n_bytes += rest.len() as u64;
    }
    ensure!(
        n_bytes == departure.bytes,
        "{n_bytes} bytes were made again, {} left",
        departure.bytes
    );
    println!(
        "{n_bytes} bytes written to {}, the same that left (digest {})",
        out.display(),
        departure.digest
    );
    Ok(())
}

/// Writes everything to `out`, signed with the node's key, for somebody who has no access to it.
pub fn export(path: &Path, out: &Path) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let certificates = settings.certificates();
    let clock = Clock::system();
    Credentials::read(&certificates, &clock)?;
    let signer =
        Signer::read(&certificates.join("certificate.pem"), &certificates.join("key.pem"))?;
    let book = Book::read(&settings)?;
    let egress = Egress {
        format: FORMAT.to_owned(),
        identity: signer.identity().to_string(),
        at: clock.now(),
        journal_records: book.verified.seq,
        journal_head: RecordDigest(book.verified.hash),
        delta: delta(&settings),
        lines: book.priced(delta(&settings)),
    };
    let signature = signer.sign(Document::Egress, &serde_json::to_vec(&egress)?);
    let n = egress.lines.len();
    let text = serde_json::to_string_pretty(&Export { egress, signature })?;
    let mut file = std::fs::File::create_new(out)
        .with_context(|| format!("{} cannot be written", out.display()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all())?;
    println!("{n} lines written to {}, signed by {}", out.display(), signer.identity());
    Ok(())
}

fn verify_export(path: &Path, export: &Path, root: Option<&Path>) -> anyhow::Result<()> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let Export { egress, signature } = serde_json::from_str(&read(export)?)
        .with_context(|| format!("{} is not an export of egress", export.display()))?;
    ensure!(egress.format == FORMAT, "{} is of format {}", export.display(), egress.format);
    let settings = config::Node::read(path);
    let root = match (root, &settings) {
        (Some(root), _) => read(root)?,
        (None, Ok(settings)) => read(&settings.certificates().join("root.pem"))?,
        (None, Err(_)) => bail!("give the federation's root certificate with --root FILE"),
    };
    let at = calendar(egress.at).context("the export has no date")?;
    let document = serde_json::to_vec(&egress)?;
    let by = comity_certs::verify(&signature, Document::Egress, &document, &root, at)?;
    ensure!(
        by.identity.to_string() == egress.identity && by.identity.client().is_some(),
        "the export speaks for {}, but {} signed it",
        egress.identity,
        by.identity
    );
    for line in &egress.lines {
        check(&line.departure).with_context(|| format!("line {}", line.n))?;
    }
    println!("ok   signature: {} lines, signed by {}", egress.lines.len(), by.identity);
    let Ok(settings) = settings else { return Ok(()) };
    let own = Credentials::read(&settings.certificates(), &Clock::system());
    if own.is_ok_and(|own| own.summary.identity == by.identity) {
        let mut book = Book::read(&settings)?;
        ensure!(
            book.hashes.get(&egress.journal_records) == Some(&egress.journal_head.0),
            "the export speaks of another journal: record {} is sealed otherwise here",
            egress.journal_records
        );
        book.lines.retain(|(line, _)| line.n <= egress.journal_records);
        ensure!(
            book.priced(egress.delta) == egress.lines,
            "the export does not say what the journal says"
        );
        println!(
            "ok   journal: still says the same of its first {} records",
            egress.journal_records
        );
    }
    Ok(())
}

/// What the journal says of departures, and of what was paid for them.
struct Book {
    verified: Verified,
    /// Each with what had been debited for its run, if it is an update.
    lines: Vec<(Line, Vec<Mechanism>)>,
    /// Updates that left and were not released before.
    unpaid: Vec<u64>,
    /// Seals of the records after which an export may have been made: of all.
    hashes: BTreeMap<u64, [u8; 32]>,
}

impl Book {
    fn read(settings: &config::Node) -> anyhow::Result<Self> {
        let journal = journal_path(&settings.state());
        ensure!(
            journal.exists(),
            "there is no journal at {}; a node writes it when it starts",
            journal.display()
        );
        let (mut lines, mut unpaid, mut hashes) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut debited: BTreeMap<String, Vec<Mechanism>> = BTreeMap::new();
        let mut released: BTreeSet<(RunId, u32, UpdateDigest)> = BTreeSet::new();
        let verified = comity_journal::read(&journal, |record| {
            hashes.insert(record.seq, record.hash);
            match record.json::<Entry>()? {
                Entry::Ledger { ledger: LedgerEntry::Reserved { key, mechanisms, .. }, .. } => {
                    debited.entry(key.run).or_default().extend(mechanisms);
                }
                Entry::Released {
                    run, event: ParticipantEvent::Trained { contribution }, ..
                } => {
                    let Contribution { round, update, .. } = contribution;
                    released.insert((run, round, update));
                }
                Entry::Left { departure } => {
                    let (n, mut spent) = (record.seq, Vec::new());
                    if departure.kind == Kind::Update {
                        let what = departure.run.clone().zip(departure.round);
                        let is_paid = what.is_some_and(|(run, round)| {
                            released.contains(&(run, round, departure.digest))
                        });
                        if !is_paid {
                            unpaid.push(n);
                        }
                        let run = departure.run.as_ref().map_or("", |run| run.as_str());
                        spent = debited.get(run).cloned().unwrap_or_default();
                    }
                    lines.push((Line { n, departure, epsilon: None }, spent));
                }
                _ => {}
            }
            Ok(())
        })
        .with_context(|| format!("{} cannot be relied on", journal.display()))?;
        Ok(Self { verified, lines, unpaid, hashes })
    }

    /// The lines with their epsilon, which takes numerical work for each update.
    fn priced(self, delta: f64) -> Vec<Line> {
        let mut last: Option<(Vec<Mechanism>, f64)> = None;
        let priced = self.lines.into_iter().map(|(mut line, spent)| {
            if line.departure.kind == Kind::Update {
                let cost = match &last {
                    Some((of, cost)) if *of == spent => *cost,
                    _ => {
                        let schedule = FixedSchedule::declared(spent.clone());
                        epsilon_of(&schedule, Relation::AddOrRemoveOne, delta).epsilon
                    }
                };
                last = Some((spent, cost));
                line.epsilon = Some(cost);
            }
            line
        });
        priced.collect()
    }
}

fn delta(settings: &config::Node) -> f64 {
    settings.policy.budget.map_or(1e-6, |budget| budget.delta.get())
}

/// The bytes of the message, or of an update's header; `None` if only the digest was kept.
fn message(departure: &Departure) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(text) = &departure.message else { return Ok(None) };
    hex::decode(text).map(Some).context("the message is not in hexadecimal digits")
}

/// That a line agrees with itself.
fn check(departure: &Departure) -> anyhow::Result<()> {
    let Some(bytes) = message(departure)? else { return Ok(()) };
    if departure.kind == Kind::Update {
        let header = v1::UpdateHeader::decode(&bytes[..])?;
        let rest = header.total_bytes.saturating_sub(departure.offset.unwrap_or_default());
        ensure!(
            header.update_digest[..] == departure.digest.0
                && Some(header.round) == departure.round
                && departure.run.as_ref().is_some_and(|run| run.as_str() == header.run_id)
                && departure.bytes == bytes.len() as u64 + rest,
            "the header that left is of another update than its line"
        );
    } else {
        ensure!(
            blake3::hash(&bytes) == blake3::Hash::from_bytes(departure.digest.0)
                && departure.bytes == bytes.len() as u64,
            "the message is not the one of its digest"
        );
    }
    said(departure).map(drop)
}

/// What the message said, in the words of the protocol.
fn said(departure: &Departure) -> anyhow::Result<Option<String>> {
    fn words<M: Message + Default + Debug>(bytes: &[u8]) -> anyhow::Result<String> {
        Ok(format!("{:#?}", M::decode(bytes)?))
    }
    let Some(bytes) = message(departure)? else { return Ok(None) };
    let said = match departure.kind {
        Kind::Hello => words::<v1::HelloRequest>(&bytes),
        Kind::Follow => words::<v1::FollowRequest>(&bytes),
        Kind::CheckIn => words::<v1::CheckInRequest>(&bytes),
        Kind::Decline => words::<v1::DeclineRequest>(&bytes),
        Kind::Withdraw => words::<v1::WithdrawRequest>(&bytes),
        Kind::FetchModel => words::<v1::FetchModelRequest>(&bytes),
        Kind::Countersign => words::<v1::CountersignRequest>(&bytes),
        Kind::UploadOffset | Kind::Update => words::<v1::UpdateHeader>(&bytes),
    };
    said.map(Some).context("the message is not one of its kind")
}
