//! From `kill -9` of a coordinator with much behind it to the first client that is served again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use comity_certs::client_config;
use comity_federation::{
    ClientId, Contribution, Event, ModelDigest, Plan, RunId, Time, UpdateDigest,
};
use comity_journal::Journal;
use comity_proto::v1::DeclineRequest;
use serde_json::json;

use crate::site::{Site, hello, plan};
use crate::table::{Row, median};

/// Open runs, and the rounds that each has behind it: 20 x (1 + 4 + 99 x 5) = 10,000 records.
const N_RUNS: usize = 20;
const N_ROUNDS: u32 = 99;
const N_CLIENTS: usize = 4;
const N_KILLS: usize = 9;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let mut site = Site::on_disk(N_CLIENTS, 9)?;
    site.deployment.kill_coordinator();
    let (n_records, runs) = write_journal(&site)?;
    let runtime = tokio::runtime::Runtime::new()?;
    // Without an index: it is rebuilt from the whole journal.
    std::fs::remove_dir_all(site.deployment.coordinator_dir().join("index"))?;
    let without_index = runtime.block_on(back(&mut site, &runs[0], 0))?;
    let mut times = Vec::new();
    for kill in 0..N_KILLS {
        site.deployment.kill_coordinator();
        times.push(runtime.block_on(back(&mut site, &runs[0], kill + 1))?);
    }
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let row = |figure: String, ours: String, slowest: f64| Row {
        figure,
        ours,
        anchor: "others resubmit the job (published)".to_owned(),
        ratio: None,
        target: "≤ 1 s".to_owned(),
        met: Some(slowest <= 1.0),
    };
    Ok(vec![
        row(
            format!(
                "kill -9 to a served client, {n_records} records, {N_RUNS} open runs: slowest of {N_KILLS}"
            ),
            format!("{slowest:.2} s (median {:.2})", median(times)),
            slowest,
        ),
        row(
            "the same with the index lost".to_owned(),
            format!("{without_index:.2} s"),
            without_index,
        ),
    ])
}

/// Seconds until the coordinator, which is not running, serves a client; something is then on its way to
/// journal and index, so that the next kill hits work.
async fn back(site: &mut Site, run: &RunId, turn: usize) -> anyhow::Result<f64> {
    let client = site.clients[0].clone();
    let pem = |name: &str| {
        std::fs::read_to_string(site.deployment.client_dir(&client).join("certs").join(name))
    };
    let tls = client_config(&pem("certificate.pem")?, &pem("key.pem")?, &pem("root.pem")?)?;
    let began = Instant::now();
    site.deployment.serve()?;
    let mut served = hello(&site.deployment.url()?, Arc::clone(&tls)).await;
    while served.is_err() && began.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        served = hello(&site.deployment.url()?, Arc::clone(&tls)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut served = served.context("the coordinator does not come back")?;
    let reason = format!("busy, for the time {turn}");
    served.decline(DeclineRequest { run_id: run.to_string(), reason }).await?;
    Ok(seconds)
}

/// Writes the journal of a coordinator that has had a long life.
fn write_journal(site: &Site) -> anyhow::Result<(u64, Vec<RunId>)> {
    let plan = Plan::from_toml(&plan(&site.clients, 9, 4, 2 * N_ROUNDS))?;
    let n_parameters = plan.manifest()?.n_trainable() as u64;
    // Written where a sync costs nothing, and then put in place.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let path = dir.path().join("journal.log");
    // Its first lines say who belongs to the federation.
    std::fs::copy(site.deployment.coordinator_dir().join("journal.log"), &path)?;
    let mut journal = Journal::open(&path)?.0;
    let mut runs = Vec::new();
    // Recent enough that no deadline has passed.
    let mut now = comity_certs::Clock::system().now().0 - 60_000;
    let digest =
        |a: u32, b: u32| *blake3::hash(&[a.to_le_bytes(), b.to_le_bytes()].concat()).as_bytes();
    for number in 0..N_RUNS as u32 {
        let id = RunId::derive(&plan.name, &plan.digest(), "bench", Time(now));
        let mut model = ModelDigest(digest(number, 0));
        journal.append_json(&json!({
            "entry": "launched", "run": id, "plan": plan, "start": model, "now": now, "by": "bench",
        }))?;
        let mut step = |event: Event| {
            now += 1;
            journal
                .append_json(&json!({ "entry": "stepped", "run": id, "now": now, "event": event }))
        };
        for client in &site.clients {
            step(Event::CheckedIn { client: client.clone(), plan: plan.digest() })?;
        }
        for round in 1..=N_ROUNDS {
            for (index, client) in site.clients.iter().enumerate() {
                let update = UpdateDigest(digest(number + 1, round * 10 + index as u32));
                step(submitted(client, &plan, round, model, update, n_parameters))?;
            }
            model = ModelDigest(digest(number + 1, round * 10 + 9));
            step(Event::Aggregated { round, model, statistics: None })?;
        }
        runs.push(id);
    }
    let (n_records, _) = journal.head();
    drop(journal);
    std::fs::copy(&path, site.deployment.coordinator_dir().join("journal.log"))?;
    Ok((n_records, runs))
}

fn submitted(
    client: &ClientId,
    plan: &Plan,
    round: u32,
    base: ModelDigest,
    update: UpdateDigest,
    n_parameters: u64,
) -> Event {
    let contribution = Contribution {
        round,
        plan: plan.digest(),
        base,
        update,
        n_parameters,
        encoding: comity_federation::UpdateEncoding::Int32,
        n_correct: None,
        loss_sum: None,
    };
    Event::Submitted { client: client.clone(), contribution }
}
