//! `comity-coordinator run …`: launch, list, show, watch and abort.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_certs::Clock;
use comity_federation::{ClientId, Plan, PlanDigest, RunId, RunReport, RunStatus, SignedConsent};
use comity_privacy::LossRequest;
use comity_proto::v1;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::operator::{open, refused, signer};
use crate::config::Home;
use crate::orders::start_request;

/// Runs one asynchronous command on a small runtime.
pub(super) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?
        .block_on(future)
}

/// Orders a run of the plan at `path`, to which the institutions of `consents` have consented.
pub fn start(
    home: &Home,
    path: &Path,
    consents: &[PathBuf],
    watching: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    // A mistake in the plan is told here, with the file's name, before anything is sent.
    let plan = Plan::from_toml(&text).with_context(|| path.display().to_string())?;
    let consents = consents.iter().map(|path| consent(path)).collect::<Result<Vec<_>, _>>()?;
    let (signer, now) = (signer(home)?, Clock::system().now());
    let request = start_request(text, &plan, &signer, now, &consents)?;
    let ordered = comity_federation::Order::from_json(&request.order_json)?.run;
    let reply = block_on(async {
        Ok(open(home).await?.start_run(request).await.map_err(refused)?.into_inner())
    })?;
    let digest = PlanDigest(comity_proto::convert::digest("plan_digest", &reply.plan_digest)?);
    if digest != plan.digest() {
        bail!("the coordinator launched another plan ({digest}) than {}", path.display());
    }
    let run: RunId = reply.run_id.parse()?;
    if run != ordered {
        bail!("the coordinator launched run {run}, ordered was {ordered}");
    }
    if as_json {
        println!("{}", json!({ "run": run, "plan": digest }));
    } else {
        println!("{run}");
        eprintln!("plan {digest} launched; `run watch {run}` follows it");
    }
    if watching { watch(home, &run, as_json) } else { Ok(()) }
}

/// An institution's consent, as `comity-client plan sign` wrote it.
fn consent(path: &Path) -> anyhow::Result<SignedConsent> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no consent; `comity-client plan sign PLAN --out FILE` writes one",
            path.display()
        )
    })
}

/// Lists all runs, oldest first.
pub fn list(home: &Home, as_json: bool) -> anyhow::Result<()> {
    let reply = block_on(async {
        Ok(open(home).await?.list_runs(v1::ListRunsRequest {}).await.map_err(refused)?.into_inner())
    })?;
    let runs = reply.runs.into_iter().map(RunReport::try_from).collect::<Result<Vec<_>, _>>()?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["run", "status", "round", "clients", "model", "reason"]);
    for run in &runs {
        table.add_row([
            run.run.to_string(),
            run.status.as_str().to_owned(),
            format!("{}/{}", run.round, run.rounds),
            run.clients.len().to_string(),
            run.model.short(),
            run.reason.clone().unwrap_or_default(),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Shows one run.
pub fn show(home: &Home, run: &RunId, as_json: bool) -> anyhow::Result<()> {
    let report = fetch(home, run)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn fetch(home: &Home, run: &RunId) -> anyhow::Result<RunReport> {
    let reply = block_on(async {
        let request = v1::ShowRunRequest { run_id: run.to_string() };
        Ok(open(home).await?.show_run(request).await.map_err(refused)?.into_inner())
    })?;
    Ok(RunReport::try_from(reply)?)
}

/// Watches a run until it has ended; an aborted one is an error.
pub fn watch(home: &Home, run: &RunId, as_json: bool) -> anyhow::Result<()> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{prefix} {bar:30} round {pos}/{len} {msg}")
            .expect("the template is well-formed"),
    );
    bar.set_prefix(run.to_string());
    let last = block_on(async {
        let request = v1::WatchRunRequest { run_id: run.to_string() };
        let mut reports = open(home).await?.watch_run(request).await.map_err(refused)?.into_inner();
        let mut last = None;
        while let Some(report) = reports.message().await.map_err(refused)? {
            let report = RunReport::try_from(report)?;
            if as_json {
                println!("{}", serde_json::to_string(&report)?);
            }
            bar.set_length(u64::from(report.rounds));
            bar.set_position(report.history.iter().filter(|r| r.model.is_some()).count() as u64);
            bar.set_message(news(&report));
            last = Some(report);
        }
        Ok(last)
    })?;
    bar.finish_and_clear();
    let Some(report) = last else { bail!("the coordinator sent no report of {run}") };
    if !report.status.is_terminal() {
        bail!("the coordinator stopped while {run} was open; the run goes on when it is back");
    }
    if !as_json {
        print(&report);
    }
    if report.status == RunStatus::Aborted {
        bail!("run {run} was aborted: {}", report.reason.unwrap_or_default());
    }
    Ok(())
}

/// One line on where the run stands.
fn news(report: &RunReport) -> String {
    match (report.status, report.history.last()) {
        (RunStatus::Training, Some(round)) => {
            let waiting: Vec<String> = round
                .cohort
                .iter()
                .filter(|c| !round.contributions.iter().any(|done| done.client == **c))
                .filter(|c| !round.missing.iter().any(|(missing, _)| missing == *c))
                .map(ToString::to_string)
                .collect();
            format!("waiting for {}", waiting.join(", "))
        }
        (status, _) => status.as_str().to_owned(),
    }
}

fn print(report: &RunReport) {
    println!("run     {}", report.run);
    println!("plan    {} ({})", report.name, report.plan);
    let reason = report.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    println!("status  {}{reason}", report.status.as_str());
    println!("model   {}", report.model);
    for client in &report.clients {
        let note = client.note.as_deref().map(|n| format!(": {n}")).unwrap_or_default();
        let connected = match client.connected {
            Some(true) => ", connected",
            Some(false) => ", not connected",
            None => "",
        };
        println!("client  {} {}{connected}{note}", client.client, client.standing.as_str());
    }
    for estimate in report.statistics.iter().flatten() {
        println!("asked   {estimate}");
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header([
        "round",
        "seconds",
        "contributed (bytes)",
        "start model's accuracy (local DP)",
        "loss (local DP)",
        "missing",
        "model",
    ]);
    let declared: BTreeMap<_, _> = report
        .history
        .iter()
        .flat_map(|r| &r.contributions)
        .map(|c| (&c.client, c.weight))
        .collect();
    for round in &report.history {
        let contributed: Vec<String> = round
            .contributions
            .iter()
            .map(|c| match c.staleness {
                0 => format!("{} ({})", c.client, c.bytes),
                n => format!("{} ({}), of round {}", c.client, c.bytes, round.round - n),
            })
            .collect();
        let accuracy: Vec<String> = round
            .contributions
            .iter()
            .filter_map(|c| {
                let records = declared.get(&c.client).copied().filter(|n| *n > 1)?;
                let correct = c.n_correct?;
                Some(format!(
                    "{} {:.1} %",
                    c.client.country(),
                    100.0 * correct as f64 / records as f64
                ))
            })
            .collect();
        let loss: Vec<String> = round
            .contributions
            .iter()
            .filter_map(|c| {
                let records = declared.get(&c.client).copied().filter(|n| *n > 1)?;
                let nats = c.loss_sum? as f64 * LossRequest::UNIT;
                Some(format!("{} {:.3}", c.client.country(), nats / records as f64))
            })
            .collect();
        let missing: Vec<String> =
            round.missing.iter().map(|(client, why)| format!("{client}: {why}")).collect();
        table.add_row([
            round.round.to_string(),
            round
                .closed
                .map(|t| format!("{:.1}", t.seconds_since(round.opened)))
                .unwrap_or_default(),
            contributed.join("\n"),
            accuracy.join("\n"),
            loss.join("\n"),
            missing.join("\n"),
            round.model.map(|m| m.short()).unwrap_or_default(),
        ]);
    }
    if !report.history.is_empty() {
        println!("{table}");
    }
}

/// Ends a run now.
pub fn abort(home: &Home, run: &RunId, reason: String) -> anyhow::Result<()> {
    block_on(async {
        let request = v1::AbortRunRequest { run_id: run.to_string(), reason };
        open(home).await?.abort_run(request).await.map_err(refused)?;
        Ok(())
    })?;
    eprintln!("run {run} aborted");
    Ok(())
}

/// Goes on without `client`.
pub fn exclude(home: &Home, run: &RunId, client: &ClientId, reason: String) -> anyhow::Result<()> {
    block_on(async {
        let (run_id, client) = (run.to_string(), client.to_string());
        let request = v1::ExcludeClientRequest { run_id, client, reason };
        open(home).await?.exclude_client(request).await.map_err(refused)?;
        Ok(())
    })?;
    eprintln!(
        "run {run} goes on without {client}; `run readmit {run} {client} --reason …` takes it back"
    );
    Ok(())
}

/// Takes back a client that was excluded.
pub fn readmit(home: &Home, run: &RunId, client: &ClientId, reason: String) -> anyhow::Result<()> {
    block_on(async {
        let (run_id, client) = (run.to_string(), client.to_string());
        let request = v1::ReadmitClientRequest { run_id, client, reason };
        open(home).await?.readmit_client(request).await.map_err(refused)?;
        Ok(())
    })?;
    eprintln!("{client} is asked again in the next round of {run}");
    Ok(())
}
