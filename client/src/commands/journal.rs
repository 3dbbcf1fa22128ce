//! `comity-client journal verify|show`: the node's own record of everything, checked and listed; needs no
//! network and works while the node runs.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::{Context as _, ensure};
use comity_certs::timestamp_of;
use comity_federation::{ParticipantEvent, RunId, Time};
use comity_journal::{JournalError, Record, Verified};
use comity_privacy::LedgerEntry;
use serde::Serialize;
use serde_json::json;

use crate::config;
use crate::store::{Entry, journal_path};

/// One record, as it is listed.
#[derive(Serialize)]
struct Line {
    seq: u64,
    /// Only where the record has one: the rules of a node know no time.
    time_ms: Option<Time>,
    what: String,
    run: String,
    /// Whose doing it was.
    who: &'static str,
}

const NODE: &str = "node";
const COORDINATOR: &str = "coordinator";
const STEWARD: &str = "steward";

impl Line {
    fn of(record: &Record) -> Result<Self, JournalError> {
        let (time_ms, run, (what, who)) = match record.json::<Entry>()? {
            Entry::Offered { run, plan, now, order, .. } => {
                let by = order.map(|signed| format!(", ordered by {}", signed.order.by));
                let what = format!("plan {} offered{}", plan.name, by.unwrap_or_default());
                (Some(now), run.to_string(), (what, COORDINATOR))
            }
            Entry::Decided { run, decision } => {
                (Some(decision.at), run.to_string(), (decision.words(), STEWARD))
            }
            Entry::Stepped { run, event } => (None, run.to_string(), news(&event)),
            Entry::Ledger { ledger, now } => {
                let (run, what) = debit(ledger);
                (now, run, (what, NODE))
            }
            Entry::Released { run, event, .. } => (None, run.to_string(), news(&event)),
            Entry::Left { departure } => {
                let what = format!("left: {}, {} bytes", departure.kind.as_str(), departure.bytes);
                let run = departure.run.map_or("-".to_owned(), |run| run.to_string());
                (Some(departure.at), run, (what, NODE))
            }
            Entry::Receipt { receipt, .. } => {
                let what = format!("round {}: receipt taken", receipt.round);
                (Some(receipt.accepted), receipt.run.to_string(), (what, COORDINATOR))
            }
            Entry::Record { record, .. } => {
                let digest = record.digest().short();
                let what =
                    format!("round {}: record {digest} checked and countersigned", record.round);
                (Some(record.closed), record.run.to_string(), (what, COORDINATOR))
            }
            Entry::Breach { run, reason, now, .. } => {
                let what = format!("the coordinator is not believed any more: {reason}");
                (Some(now), run.to_string(), (what, NODE))
            }
        };
        Ok(Self { seq: record.seq, time_ms, what, run, who })
    }
}

fn news(event: &ParticipantEvent) -> (String, &'static str) {
    use ParticipantEvent as On;
    match event {
        On::Accepted => ("agreed".to_owned(), NODE),
        On::Declined { reason } => (format!("declined: {reason}"), NODE),
        On::Assigned { task } => (format!("round {}: assigned", task.round), COORDINATOR),
        On::Trained { contribution } => {
            let bytes = contribution.delta_bytes();
            (format!("round {}: update released, {bytes} bytes", contribution.round), NODE)
        }
        On::Failed { round, reason } => (format!("round {round}: not trained: {reason}"), NODE),
        On::Settled { round } => (format!("round {round}: settled"), COORDINATOR),
        On::RunEnded { status } => (format!("run {status}"), COORDINATOR),
    }
}

/// Run and words of a ledger's entry.
fn debit(entry: LedgerEntry) -> (String, String) {
    match entry {
        LedgerEntry::Opened { run, .. } => (run, "ledger: run admitted".to_owned()),
        LedgerEntry::Reserved { key, .. } => (key.run, format!("round {}: debited", key.round)),
        LedgerEntry::Reopened { key, .. } => {
            (key.run, format!("round {}: made again under other keys", key.round))
        }
        LedgerEntry::Committed { key, .. } => (key.run, format!("round {}: committed", key.round)),
        LedgerEntry::Closed { run } => (run, "ledger: run closed".to_owned()),
    }
}

/// Checks every record's seal and meaning, and says where the journal stands.
pub fn verify(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let verified = read(path, drop)?;
    let head = comity_federation::ModelDigest(verified.hash).to_string();
    if as_json {
        let torn = verified.torn_bytes;
        println!("{}", json!({ "records": verified.seq, "head": head, "torn_bytes": torn }));
        return Ok(());
    }
    println!("ok   {} records, each sealed by the next; head {head}", verified.seq);
    if verified.torn_bytes > 0 {
        println!(
            "     {} bytes behind them are of a record that is being written, or that a crash cut off; \
             the next start removes them",
            verified.torn_bytes
        );
    }
    Ok(())
}

/// Lists the records, oldest first: those of `run`, and the `last` ones of them.
pub fn show(
    path: &Path,
    run: Option<&RunId>,
    last: Option<usize>,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut lines = VecDeque::new();
    read(path, |line| {
        if run.is_none_or(|run| line.run == run.as_str()) {
            lines.push_back(line);
            if last.is_some_and(|n| lines.len() > n) {
                lines.pop_front();
            }
        }
    })?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    for line in lines {
        let date = line.time_ms.map_or("-".to_owned(), timestamp_of);
        println!("{:>6}  {date}  {}  {}  {}", line.seq, line.run, line.who, line.what);
    }
    Ok(())
}

fn read(path: &Path, mut each: impl FnMut(Line)) -> anyhow::Result<Verified> {
    let settings = config::Node::read(path)?;
    let journal = journal_path(&settings.state());
    ensure!(
        journal.exists(),
        "there is no journal at {}; a node writes it when it starts",
        journal.display()
    );
    comity_journal::read(&journal, |record| Line::of(&record).map(&mut each))
        .with_context(|| format!("{} cannot be relied on", journal.display()))
}
