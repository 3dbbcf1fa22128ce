//! `comity-client privacy statement|verify`: what a regulator reads, and the proof that the node's
//! own journal says the same.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_federation::Plan;
use comity_journal::BlobStore;
use comity_privacy::{Ledger, LedgerEntry, Mechanism, NoiseKind, Statement};
use serde::{Deserialize, Serialize};

use super::{bound, epsilon};
use crate::config;
use crate::store::{Folded, journal_path};

/// A statement and the place in the journal up to which it speaks.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    /// Which version of this document.
    format: String,
    /// Records of the journal.
    journal_seq: u64,
    /// Hash of the last of them, which seals all before it.
    journal_hash: String,
    #[serde(flatten)]
    statement: Statement,
}

const FORMAT: &str = "comity-privacy-statement/1";

/// Prints the statement; works while the node is running.
pub fn statement(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let (sealed, _) = read(&settings, u64::MAX)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&sealed)?);
    } else {
        print(&sealed);
    }
    Ok(())
}

/// Checks journal, ledger and releases against one another, and `statement`, if it is given, against
/// what the journal says; prints what was checked. Needs no network.
pub fn verify(path: &Path, statement: Option<&Path>) -> anyhow::Result<()> {
    let settings = config::Node::read(path)?;
    let claimed = match statement {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("{} cannot be read", file.display()))?;
            let sealed: Sealed = serde_json::from_str(&text)
                .with_context(|| format!("{} is not a statement in JSON", file.display()))?;
            ensure!(sealed.format == FORMAT, "{} is of format {}", file.display(), sealed.format);
            Some(sealed)
        }
    };
    let up_to = claimed.as_ref().map_or(u64::MAX, |claimed| claimed.journal_seq);
    let (sealed, folded) = read(&settings, up_to)?;
    println!("ok   journal: {} records, each sealed by the next", sealed.journal_seq);
    println!("ok   ledger: every round was debited before it was released, within its run's plan");
    println!("ok   keys: {} attempts at rounds, no key used twice", sealed.statement.n_keys);
    let n_plans = check_plans(&folded)?;
    println!(
        "ok   plans: the noise of {n_plans} runs is what their plans ask for, within their budgets"
    );
    let (n_here, n_gone) = check_releases(&settings, &folded)?;
    println!(
        "ok   releases: {n_here} are here, byte for byte as committed; {n_gone} are no longer stored"
    );
    if let Some(claimed) = claimed {
        ensure!(
            claimed.journal_hash == sealed.journal_hash,
            "the statement speaks of another journal: its record {} is sealed by {}, here by {}",
            claimed.journal_seq,
            claimed.journal_hash,
            sealed.journal_hash
        );
        ensure!(
            claimed == sealed,
            "the statement does not say what the journal says; print it again with \
             `comity-client privacy statement --json` and compare"
        );
        println!("ok   statement: computed again from the journal, every figure the same");
    }
    Ok(())
}

/// The statement of the journal's first `up_to` records.
fn read(settings: &config::Node, up_to: u64) -> anyhow::Result<(Sealed, Folded)> {
    let journal = journal_path(&settings.state());
    let mut folded = Folded::default();
    let (mut seq, mut hash) = (0, [0; 32]);
    if journal.exists() {
        comity_journal::read(&journal, |record| {
            if seq < up_to {
                (seq, hash) = (seq + 1, record.hash);
                folded.fold(record)?;
            }
            Ok(())
        })
        .with_context(|| format!("{} cannot be relied on", journal.display()))?;
    }
    ensure!(
        up_to == u64::MAX || seq == up_to,
        "the statement speaks of {up_to} records, this journal has {seq}: it was cut, or restored \
         from an older copy"
    );
    let ledger = Ledger::replay(settings.limit(), folded.ledger.clone())?;
    let sealed = Sealed {
        format: FORMAT.to_owned(),
        journal_seq: seq,
        journal_hash: comity_federation::ModelDigest(hash).to_string(),
        statement: Statement::new(&ledger, settings.units_declared()),
    };
    Ok((sealed, folded))
}

/// That each run was admitted under the plan that was offered, and keeps within its budget.
fn check_plans(folded: &Folded) -> anyhow::Result<usize> {
    let mut n_plans = 0;
    for entry in &folded.ledger {
        let LedgerEntry::Opened { run, terms: Some(terms), .. } = entry else { continue };
        let total = terms.epsilon_total().epsilon;
        let budget = terms.budget().epsilon.get();
        ensure!(total <= budget, "run {run}: its plan costs epsilon {total}, above its {budget}");
        let id = run.parse().with_context(|| format!("the ledger names a run {run:?}"))?;
        let part = folded.parts.get(&id).with_context(|| format!("run {run} was never offered"))?;
        ensure!(
            asks_for(&part.plan, terms.request()),
            "run {run}: the ledger was debited for other terms than those of the plan that was offered"
        );
        n_plans += 1;
    }
    Ok(n_plans)
}

/// Whether `plan` asks one of its clients for just this.
fn asks_for(plan: &Plan, request: &comity_privacy::PrivacyRequest) -> bool {
    plan.cohort.clients.iter().any(|client| {
        plan.privacy_request(client).is_ok_and(|asked| asked.as_ref() == Some(request))
    })
}

/// That what was committed is what lies in the store; returns how many are and are no longer there.
fn check_releases(settings: &config::Node, folded: &Folded) -> anyhow::Result<(usize, usize)> {
    let committed: BTreeSet<[u8; 32]> = folded
        .ledger
        .iter()
        .filter_map(|entry| match entry {
            LedgerEntry::Committed { release, .. } => Some(*release),
            _ => None,
        })
        .collect();
    if committed.is_empty() {
        return Ok((0, 0));
    }
    let blobs = BlobStore::existing(settings.state().join("blobs"));
    let mut n_here = 0;
    for release in &committed {
        if blobs.contains(release) {
            blobs.verify(release).context("a release is not what was committed")?;
            n_here += 1;
        }
    }
    Ok((n_here, committed.len() - n_here))
}

fn print(sealed: &Sealed) {
    let statement = &sealed.statement;
    println!(
        "Privacy statement (journal: {} records, {})",
        sealed.journal_seq, sealed.journal_hash
    );
    match statement.unit {
        Some(unit) => println!("unit:       {unit}; {} declared", statement.units_declared),
        None if statement.runs.is_empty() => println!("unit:       nothing was released yet"),
        None => println!("unit:       not the same in every run; see the list"),
    }
    println!("relation:   {}", statement.relation);
    println!("sampler:    {}", statement.sampler);
    println!("randomness: {}; {} keys so far", statement.randomness, statement.n_keys);
    let table = || {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
        table
    };
    let mut total = table();
    total.set_header(["all runs, at delta", "epsilon", "bound", "RDP", "PLD", "replace one"]);
    for figures in &statement.total {
        total.add_row([
            format!("{:.3e}", figures.delta),
            epsilon(figures.epsilon.epsilon),
            bound(figures.epsilon.bound).to_owned(),
            epsilon(figures.epsilon.rdp_epsilon),
            figures.epsilon.pld_epsilon.map_or("-".to_owned(), epsilon),
            epsilon(figures.replace_one.epsilon),
        ]);
    }
    println!("{total}");
    let mut runs = table();
    runs.set_header([
        "run",
        "unit",
        "noise",
        "rounds",
        "released",
        "mechanisms",
        "epsilon at 1e-5",
    ]);
    for run in &statement.runs {
        runs.add_row([
            run.run.clone(),
            run.unit.map_or("none".to_owned(), |unit| unit.to_string()),
            match run.noise {
                Some(NoiseKind::DiscreteGaussian) => "discrete Gaussian, exact",
                Some(NoiseKind::FloatGaussian) => "Gaussian in floats, not exact",
                _ => "none: without differential privacy",
            }
            .to_owned(),
            run.rounds_reserved.to_string(),
            run.rounds_released.to_string(),
            run.mechanisms.iter().map(mechanism).collect::<Vec<_>>().join("; "),
            epsilon(run.spent[0].epsilon.epsilon),
        ]);
    }
    println!("{runs}");
    println!("Not covered by these figures:");
    for exclusion in &statement.exclusions {
        println!("  - {exclusion}");
    }
}

fn mechanism(mechanism: &Mechanism) -> String {
    match mechanism {
        Mechanism::SampledGaussian { q, sigma, steps } => {
            format!("{steps} Gaussian steps, q {q:.6}, sigma {sigma}")
        }
        Mechanism::Zcdp { rho } => format!("counts, rho {rho:.6}"),
        Mechanism::Exempt => "without differential privacy".to_owned(),
    }
}
