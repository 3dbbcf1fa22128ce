//! `comity-coordinator journal verify|show`: the coordinator's own record of everything, checked and listed;
//! needs no network and works while the coordinator serves.

use std::collections::VecDeque;

use anyhow::{Context as _, ensure};
use comity_certs::timestamp_of;
use comity_federation::{Command, Event, RunId, Time};
use comity_journal::{JournalError, Record, Verified};
use serde::Serialize;
use serde_json::json;

use crate::config::Home;
use crate::store::Entry;

/// One record, as it is listed.
#[derive(Serialize)]
struct Line {
    seq: u64,
    time_ms: Time,
    what: String,
    /// `None` for what is about the federation.
    run: Option<RunId>,
    who: String,
}

impl Line {
    fn of(record: &Record) -> Result<Self, JournalError> {
        let seq = record.seq;
        Ok(match record.json::<Entry>()? {
            Entry::Launched { run, plan, now, by, .. } => {
                let what = format!("launched plan {}: {}", plan.digest().short(), plan.purpose);
                Self { seq, time_ms: now, what, run: Some(run), who: by }
            }
            Entry::Stepped { run, now, event, by } => {
                let (what, whose) = news(&event);
                let who = by.unwrap_or(whose);
                Self { seq, time_ms: now, what, run: Some(run), who }
            }
            Entry::Membership { change, now, by, why } => {
                let what = match why.as_str() {
                    "" => change.to_string(),
                    why => format!("{change}: {why}"),
                };
                Self { seq, time_ms: now, what, run: None, who: by }
            }
            Entry::Recorded { record, .. } => Self {
                seq,
                time_ms: record.closed,
                what: format!("round {}: record {} signed", record.round, record.digest().short()),
                run: Some(record.run),
                who: "-".to_owned(),
            },
            Entry::Countersigned { run, round, now, client, .. } => Self {
                seq,
                time_ms: now,
                what: format!("round {round}: record countersigned"),
                run: Some(run),
                who: client.to_string(),
            },
        })
    }
}

/// What an event says, and whose it is; the coordinator's own have a dash.
fn news(event: &Event) -> (String, String) {
    let own = || "-".to_owned();
    match event {
        Event::CheckedIn { client, .. } => ("checked in".to_owned(), client.to_string()),
        Event::Declined { client, .. } => ("declined".to_owned(), client.to_string()),
        Event::Drawn { round, .. } => (format!("round {round}: cohort drawn"), own()),
        Event::Submitted { client, contribution } => {
            (format!("round {}: contributed", contribution.round), client.to_string())
        }
        Event::Withdrew { client, round, .. } => {
            (format!("round {round}: withdrew"), client.to_string())
        }
        Event::Refused { client, round, reason } => {
            (format!("round {round}: update refused: {reason}"), client.to_string())
        }
        Event::Aggregated { round, model, .. } => {
            (format!("round {round}: model {} published", model.short()), own())
        }
        Event::Ordered { command: Command::Abort { reason } } => {
            (format!("ordered to abort: {reason}"), own())
        }
        Event::Ordered { command: Command::Exclude { client, reason } } => {
            (format!("ordered to go on without {client}: {reason}"), own())
        }
        Event::Ordered { command: Command::Readmit { client, reason } } => {
            (format!("ordered to take {client} back: {reason}"), own())
        }
        Event::Tick => ("deadline passed".to_owned(), own()),
    }
}

/// Checks every record's seal and meaning, and says where the journal stands.
pub fn verify(home: &Home, as_json: bool) -> anyhow::Result<()> {
    let verified = read(home, drop)?;
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
    home: &Home,
    run: Option<&RunId>,
    last: Option<usize>,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut lines = VecDeque::new();
    read(home, |line| {
        if run.is_none_or(|run| line.run.as_ref() == Some(run)) {
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
        println!(
            "{:>6}  {}  {}  {}  {}",
            line.seq,
            timestamp_of(line.time_ms),
            line.run.as_ref().map_or("-", RunId::as_str),
            line.who,
            line.what
        );
    }
    Ok(())
}

fn read(home: &Home, mut each: impl FnMut(Line)) -> anyhow::Result<Verified> {
    let path = home.journal();
    ensure!(
        path.exists(),
        "there is no journal at {}; give the coordinator's folder with --dir",
        path.display()
    );
    comity_journal::read(&path, |record| Line::of(&record).map(&mut each))
        .with_context(|| format!("{} cannot be relied on", path.display()))
}
