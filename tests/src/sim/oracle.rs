//! What must hold after a simulation, read from the files that it left.
//!
//! Client i trains for round r a vector whose only coordinate that is not zero, (r, i), is 1. The mean
//! of a round is therefore w_i / Σw at (r, i) for those who were counted and 0 for the others: a model whose
//! coefficient is anything else has lost an update or counted one twice. Where late updates count, r may be
//! an earlier round, and FedBuff divides w_i by √(1 + age). The round's record must say the
//! same, whoever was told "accepted" must be in it, and the whole is folded from the journal by nothing but
//! `Run::step`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use comity_federation::{
    ClientId, Event, ModelDigest, Parameters, Plan, Run, RunId, RunReport, Strategy, Time,
};
use comity_journal::BlobStore;
use serde_json::Value;

use super::site::client_id;
use super::trainer::coordinate;

/// The runs of a coordinator's journal, folded by `Run::step` alone.
pub(super) fn runs(dir: &Path) -> Result<BTreeMap<RunId, Run>, String> {
    let mut runs = BTreeMap::new();
    comity_journal::read(dir.join("journal.log"), |record| {
        let entry: Value = record.json()?;
        let get = |key: &str| entry[key].clone();
        let refuse = |e: serde_json::Error| record.refuse(e);
        // What is signed of a run moves no machine; clients check it while the simulation goes on.
        if matches!(entry["entry"].as_str(), Some("recorded" | "countersigned" | "membership")) {
            return Ok(());
        }
        let run: RunId = serde_json::from_value(get("run")).map_err(refuse)?;
        let now: Time = serde_json::from_value(get("now")).map_err(refuse)?;
        match entry["entry"].as_str() {
            Some("launched") => {
                let plan: Plan = serde_json::from_value(get("plan")).map_err(refuse)?;
                let start: ModelDigest = serde_json::from_value(get("start")).map_err(refuse)?;
                runs.insert(run.clone(), Run::new(run, plan, start, now));
            }
            Some("stepped") => {
                let event: Event = serde_json::from_value(get("event")).map_err(refuse)?;
                let machine: &mut Run =
                    runs.get_mut(&run).ok_or_else(|| record.refuse("never launched"))?;
                let effects = machine.step(event, now).map_err(|e| record.refuse(e))?;
                if effects.is_empty() {
                    return Err(record.refuse("a repetition was recorded"));
                }
            }
            other => return Err(record.refuse(format!("unknown entry {other:?}"))),
        }
        Ok(())
    })
    .map_err(|e| format!("the coordinator's journal: {e}"))?;
    Ok(runs)
}

/// What a node's journal says.
#[derive(Debug, Default)]
pub(super) struct ClientBooks {
    /// Runs that it takes to be open.
    pub(super) open: BTreeSet<String>,
    /// How many updates of each round were let out.
    pub(super) released: BTreeMap<u32, u32>,
}

/// Reads the journal of the node whose state lies in `state`.
pub(super) fn client_books(state: &Path) -> Result<ClientBooks, String> {
    let mut books = ClientBooks::default();
    let path = state.join("journal.log");
    if !path.exists() {
        return Ok(books);
    }
    comity_journal::read(path, |record| {
        let entry: Value = record.json()?;
        let run = entry["run"].as_str().unwrap_or_default().to_owned();
        match (entry["entry"].as_str(), entry["event"]["event"].as_str()) {
            (Some("offered"), _) => {
                books.open.insert(run);
            }
            (Some("stepped"), Some("run_ended")) => {
                books.open.remove(&run);
            }
            (Some("breach"), _) => {
                let reason = entry["reason"].as_str().unwrap_or_default();
                return Err(record.refuse(format!("an honest coordinator was accused: {reason}")));
            }
            (Some("released"), _) => {
                let round = entry["event"]["contribution"]["round"].as_u64();
                let round = round.ok_or_else(|| record.refuse("a release without a round"))?;
                *books.released.entry(round as u32).or_default() += 1;
            }
            _ => {}
        }
        Ok(())
    })
    .map_err(|e| format!("the journal of {}: {e}", state.display()))?;
    Ok(books)
}

/// How many updates the model counts, or what is wrong with it.
///
/// `released`: how many updates of each (client, round) were let out; `accepted`: those of which the
/// node was told that the coordinator has them.
pub(super) fn judge(
    report: &RunReport,
    plan: &Plan,
    n_clients: usize,
    blobs: &BlobStore,
    released: &BTreeMap<(usize, u32), u32>,
    accepted: &BTreeSet<(usize, u32)>,
) -> (u64, Vec<String>) {
    let (mut n_counted, mut wrongs) = (0, Vec::new());
    let mut wrong = |what: String| wrongs.push(what);
    if !report.status.is_terminal() {
        wrong(format!("the run is still {}", report.status.as_str()));
    }
    for ((client, round), n) in released {
        if *n > 1 {
            wrong(format!("client {client} let out {n} updates of round {round}"));
        }
    }
    let model = |digest: &ModelDigest| -> Result<Vec<f32>, String> {
        let bytes = blobs.read_all(&digest.0).map_err(|e| format!("model {digest}: {e}"))?;
        let read = Parameters::from_bytes(&bytes).ok_or("a model is not a list of numbers")?;
        Ok(read.values().to_vec())
    };
    // The rounds for which an update is on record, whichever round it counts in.
    let mut recorded: BTreeSet<(&ClientId, u32)> = BTreeSet::new();
    let ages = matches!(plan.aggregation.strategy, Strategy::Fedbuff { .. });
    for round in &report.history {
        let mut weights: BTreeMap<&ClientId, (u64, u32)> = BTreeMap::new();
        for contribution in &round.contributions {
            let (weight, age) = (contribution.weight, contribution.staleness);
            if weights.insert(&contribution.client, (weight, age)).is_some() {
                wrong(format!("round {}: {} twice", round.round, contribution.client));
            }
            if age > plan.staleness_max() {
                wrong(format!("round {}: {} is too old", round.round, contribution.client));
            }
            if !recorded.insert((&contribution.client, round.round - age)) {
                wrong(format!("round {}: {} counted again", round.round, contribution.client));
            }
            if !round.cohort.contains(&contribution.client) {
                wrong(format!("round {}: {} not invited", round.round, contribution.client));
            }
        }
        let Some(next) = &round.model else {
            // A round that was not closed with a model counts nobody.
            continue;
        };
        let (before, after) = match (model(&round.base), model(next)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(e), _) | (_, Err(e)) => {
                wrong(e);
                continue;
            }
        };
        let counts = |(weight, age): (u64, u32)| match ages {
            true => weight as f64 / f64::from(1 + age).sqrt(),
            false => weight as f64,
        };
        let total: f64 = weights.values().map(|counted| counts(*counted)).sum();
        let mut expected = vec![0.0; before.len()];
        for index in 0..n_clients {
            let id = client_id(index);
            let named = plan.client(&id).expect("the plan names it");
            if let Some((weight, age)) = weights.get(&id) {
                n_counted += 1;
                let trained = round.round - age;
                if *weight != plan.weight(named) {
                    wrong(format!("round {}: {id} weighs {weight}", round.round));
                }
                if !released.contains_key(&(index, trained)) {
                    wrong(format!("round {}: {id} counted and never let out", round.round));
                }
                expected[coordinate(n_clients, trained, index)] = counts((*weight, *age)) / total;
            }
        }
        for (at, expected) in expected.iter().enumerate() {
            let got = f64::from(after[at]) - f64::from(before[at]);
            if (got - expected).abs() > 1e-5 {
                wrong(format!(
                    "round {}: coefficient {at} is {got}, not {expected}: lost or counted twice",
                    round.round
                ));
            }
        }
    }
    for (client, round) in accepted {
        if !recorded.contains(&(&client_id(*client), *round)) {
            wrong(format!("client {client} was told of an update in round {round}, which is lost"));
        }
    }
    for pair in report.history.windows(2) {
        if pair[0].model != Some(pair[1].base) {
            wrong(format!("round {} does not start from the model before", pair[1].round));
        }
    }
    (n_counted, wrongs)
}
