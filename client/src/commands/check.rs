//! `comity-client check`: everything that can be known before the first run, and what to mend.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use comity_burn_models::{check_units, data_contract};
use comity_certs::{Clock, date_of, renewing_config, time_of};
use comity_datasets::Source;
use comity_federation::{Circumstances, Plan};
use comity_proto::transport::{Tcp, connect_over};
use serde::Serialize;
use time::OffsetDateTime;

use crate::config;
use crate::egress::Egress;
use crate::enrolment::{Renewal, certified};
use crate::link::{Credentials, Link, check_url};

/// Clocks that differ by more than this make certificates and deadlines unreliable.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);

/// One line of the check.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    detail: String,
}

/// Checks configuration, certificate, device, data, plan and connection; returns whether all is
/// well.
pub fn check(path: &Path, plan: Option<&Path>, as_json: bool) -> anyhow::Result<bool> {
    let mut findings = Vec::new();
    let mut note = |what: &'static str, result: anyhow::Result<String>| {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        if !as_json {
            println!("{} {what}: {detail}", if ok { "ok  " } else { "FAIL" });
        }
        findings.push(Finding { what, ok, detail });
    };
    let settings = config::Node::read(path);
    note("configuration", settings.as_ref().map(|_| path.display().to_string()).map_err(flat));
    if let Ok(settings) = &settings {
        let credentials = Credentials::read(&settings.certificates(), &Clock::system());
        note(
            "certificate",
            credentials.as_ref().map_err(flat).and_then(|c| {
                let client = c.client_id()?;
                if let Some(dated) = &c.dated {
                    bail!("{dated}; a running node asks for the next one by itself");
                }
                let hours = (c.summary.not_after - OffsetDateTime::now_utc()).whole_hours();
                Ok(format!(
                    "{client} of federation {}, {hours} hours left",
                    c.summary.identity.federation
                ))
            }),
        );
        if credentials.is_ok() {
            note("renewal", renewal(settings));
        }
        note("data files", data_files(settings));
        let device = settings.config.device;
        note("device", device.open().map(|_| device.to_string()).map_err(Into::into));
        if let Some(plan) = plan {
            note("plan and data", check_plan(settings, credentials.as_ref().ok(), plan));
        }
        if let Ok(credentials) = &credentials {
            note("connection", connect(settings, credentials));
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    }
    Ok(findings.iter().all(|finding| finding.ok))
}

fn flat(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// What the plan would do here: policy, data, and cost.
fn check_plan(
    settings: &config::Node,
    credentials: Option<&Credentials>,
    path: &Path,
) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let plan = Plan::from_toml(&text)?;
    let client = credentials.context("the certificate has to be in order first")?.client_id()?;
    settings.policy.review(&plan, &client, Circumstances::default())?;
    let source = &settings.config.data.source;
    let dataset = source.load(&settings.base, &data_contract(&plan.data, source))?;
    check_units(&plan, &dataset)?;
    let named = plan.client(&client).expect("the policy checked that the plan names us");
    let cost = match plan.privacy_plan(named)? {
        Some(privacy) => format!(
            "epsilon {:.3} at delta {:e} in {} rounds",
            privacy.epsilon_total().epsilon,
            privacy.budget().delta.get(),
            plan.rounds
        ),
        None => "no differential privacy".to_owned(),
    };
    Ok(format!("{} records fit plan {}; it would cost {cost}", dataset.len(), plan.name))
}

/// How the node's certificate is renewed.
fn renewal_of(settings: &config::Node) -> Renewal {
    Renewal {
        certificates: settings.certificates(),
        url: settings.enrolment(),
        clock: Clock::system(),
        network: Arc::new(Tcp),
    }
}

/// Whether somebody answers where the certificate is renewed, and is the coordinator.
fn renewal(settings: &config::Node) -> anyhow::Result<String> {
    let (url, path) = (settings.enrolment(), settings.certificates().join("root.pem"));
    let root = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let tls = renewing_config(&root, Arc::new(Clock::system()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(connect_over(&Tcp, &url, tls)).with_context(|| {
        format!("{url} is where the certificate is renewed (enrolment in client.toml)")
    })?;
    let at = certified(&settings.certificates())?.renews_at();
    Ok(format!("{url} answers; due at {}", date_of(time_of(at))))
}

/// Whether the data's files are there; what is in them is checked against a plan.
fn data_files(settings: &config::Node) -> anyhow::Result<String> {
    let paths = match &settings.config.data.source {
        Source::Idx { images, labels } => vec![images, labels],
        Source::Csv(table) => vec![&table.path],
    };
    for path in &paths {
        let path = settings.base.join(path);
        ensure!(
            path.is_file(),
            "{} is not there; write where the data are into client.toml, [data] source",
            path.display()
        );
    }
    Ok(format!("{} of {} are there", paths.len(), paths.len()))
}

fn connect(settings: &config::Node, credentials: &Credentials) -> anyhow::Result<String> {
    let config = &settings.config;
    let url = &config.coordinator;
    check_url(url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (compress, egress) = (config.connection.compress, Egress::of_check(Clock::system()));
    let hello = runtime.block_on(async {
        match Link::open(&Tcp, url, credentials, compress, egress).await {
            Ok(link) => Ok(link.hello),
            Err(error) => Err(anyhow::anyhow!(renewal_of(settings).explain(&error).await)),
        }
    })?;
    let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000)?;
    let skew = Duration::from_millis(now.abs_diff(hello.now_ms));
    anyhow::ensure!(
        skew <= CLOCK_SKEW_MAX,
        "this clock and the coordinator's differ by {} s; set the clock",
        skew.as_secs()
    );
    Ok(format!("{} says hello to {} of {}", hello.software, hello.you, hello.federation))
}
