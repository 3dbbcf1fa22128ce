//! `comity-sim audit`: look for defects in what differential privacy rests on.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use comity_simulator::audit::Verdict;
use comity_simulator::audit::canary::{CanaryAudit, audit_canary};
use comity_simulator::audit::noise::{NoiseAudit, audit_noise};
use comity_simulator::audit::replay::{ReplayReport, audit_replay, default_plans};

use crate::commands::read_plan;
use crate::output;

/// Look for defects in what differential privacy rests on.
///
/// Each audit ends in PASS, BROKEN or INCONCLUSIVE; BROKEN exits with 1. An audit finds defects and
/// proves nothing; docs/privacy.md, section 10, says what each can see. None touches an
/// institution's data or ledger.
#[derive(Subcommand)]
#[command(after_long_help = "\
Examples:
  comity-sim audit replay
  comity-sim audit replay examples/fashion/plan.toml --json
  comity-sim audit noise
  comity-sim audit canary --epsilon 4")]
pub(crate) enum Audit {
    /// One record more or less, everything else the same: what changes?
    Replay(ReplayArgs),
    /// Is the noise distributed as accounted, and independent?
    Noise(NoiseArgs),
    /// Does one released model tell which of many canaries were in, more than ε allows?
    Canary(CanaryArgs),
}

#[derive(Args)]
#[command(after_long_help = "\
Example:
  comity-sim audit canary --canaries 2000 --epsilon 2")]
pub(crate) struct CanaryArgs {
    /// How many canaries, each in with probability 1/2; 100 to 5000.
    #[arg(long, default_value_t = 1000)]
    canaries: usize,
    /// The ε that is promised, and put to the test.
    #[arg(long, default_value_t = 4.0)]
    epsilon: f64,
    /// The δ that goes with it.
    #[arg(long, default_value_t = 1e-5)]
    delta: f64,
    /// Makes the labels, and decides which canaries are in.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_long_help = "\
Example:
  comity-sim audit replay examples/fashion/plan.toml")]
pub(crate) struct ReplayArgs {
    /// Plan whose model, training and privacy are replayed, on generated records; without one, two
    /// small plans of the audit's own.
    plan: Option<PathBuf>,
    /// Makes the records and the batches.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_long_help = "\
Example:
  comity-sim audit noise --values 100000000")]
pub(crate) struct NoiseArgs {
    /// About how many values of each kind are drawn; 10 million take seconds and 250 MB.
    #[arg(long, default_value_t = 10_000_000)]
    values: u64,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        let verdict = match self {
            Self::Replay(args) => {
                let plans = match &args.plan {
                    Some(path) => vec![read_plan(path)?],
                    None => default_plans().to_vec(),
                };
                let reports: Vec<ReplayReport> = plans
                    .iter()
                    .map(|plan| audit_replay(plan, args.seed))
                    .collect::<Result<_, _>>()?;
                if args.json {
                    output::print_json(&reports)?;
                } else {
                    reports.iter().try_for_each(|report| output::print(&replay_text(report)))?;
                }
                reports.iter().map(|report| report.verdict).max().unwrap_or(Verdict::Inconclusive)
            }
            Self::Noise(args) => {
                let audit = audit_noise(args.values)?;
                if args.json {
                    output::print_json(&audit)?;
                } else {
                    output::print(&noise_text(&audit))?;
                }
                audit.verdict
            }
            Self::Canary(args) => {
                let audit = audit_canary(args.canaries, args.epsilon, args.delta, args.seed)?;
                if args.json {
                    output::print_json(&audit)?;
                } else {
                    output::print(&canary_text(&audit))?;
                }
                audit.verdict
            }
        };
        anyhow::ensure!(
            verdict != Verdict::Broken,
            "the audit found a defect: do not train under differential privacy with this build"
        );
        Ok(())
    }
}

fn replay_text(report: &ReplayReport) -> String {
    let header = ["record", "steps", "difference / C", "allowed", "defects"];
    let rows = report.cases.iter().map(|case| {
        let number =
            |value: f64| if case.n_steps == 0 { "-".into() } else { format!("{value:.6}") };
        vec![
            case.name.clone(),
            case.n_steps.to_string(),
            number(case.difference),
            number(case.allowed),
            case.problems.len().to_string(),
        ]
    });
    let mut text = format!("{} ({} parameters)\n", report.plan, report.n_parameters);
    text += &output::table(header.map(str::to_owned).to_vec(), rows.collect());
    text += &format!(
        "noise multiplier {:.5} ± {:.5} measured, {:.5} accounted\n",
        report.measured, report.standard_error, report.accounted
    );
    for case in &report.cases {
        for problem in &case.problems {
            text += &format!("defect: {}: {problem}\n", case.name);
        }
    }
    for problem in &report.problems {
        text += &format!("defect: {problem}\n");
    }
    text + &format!("{}\n", report.verdict)
}

fn noise_text(audit: &NoiseAudit) -> String {
    let mut text = String::new();
    for kind in &audit.kinds {
        text += &format!(
            "{}: {} values, {} keys, {} steps of {} parameters, {} threads\n",
            serde_json::json!(kind.kind).as_str().unwrap_or_default(),
            kind.report.n_values,
            kind.n_keys,
            kind.n_steps,
            kind.n_parameters,
            kind.n_lanes,
        );
        let rows = kind.report.tests.iter().map(|test| {
            vec![
                test.name.clone(),
                format!("{:.6}", test.observed),
                format!("{:.6}", test.expected),
                format!("{:.3e}", test.p_value),
            ]
        });
        let header = ["test", "observed", "expected", "p-value"];
        text += &output::table(header.map(str::to_owned).to_vec(), rows.collect());
        text += &format!("a test fails below {:.1e}\n", kind.report.p_value_min);
        for failure in kind.report.failures() {
            text += &format!("defect: {}\n", failure.name);
        }
    }
    text + &format!("{}\n", audit.verdict)
}

fn canary_text(canary: &CanaryAudit) -> String {
    let CanaryAudit { audit, .. } = canary;
    format!(
        "{} canaries, {} steps at q = {}\n\
         epsilon claimed        {:.4} at delta = {:e}\n\
         epsilon at least       {:.4} (Steinke et al. 2023), {:.4} (Mahloujifar et al. 2024, \
         Gaussian curve), both at {:.0} %\n\
         true positive rate     {:.4} at 0.1 % false positives, {:.4} at 1 %\n\
         a third of the noise   found out in {} of {} controls\n{}\n",
        canary.n_canaries,
        canary.n_steps,
        canary.sampling_rate,
        canary.claimed_epsilon,
        audit.delta,
        audit.snj23_epsilon,
        audit.mmc24_epsilon,
        100.0 * audit.confidence,
        audit.tpr_at_fpr_0_001,
        audit.tpr_at_fpr_0_01,
        canary.n_controls_found,
        canary.n_controls,
        canary.verdict,
    )
}
