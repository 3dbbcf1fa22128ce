//! `comity-sim privacy`: what training costs, and which noise a budget needs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use comity_federation::{ClientId, Plan};
use comity_privacy::{
    BoundKind, Budget, EpsilonReport, Mechanism, PrivacyError, calibrate_noise_multiplier, epsilon,
};
use serde::Serialize;

use crate::commands::read_plan;
use crate::output::{self, Hint};

/// Work out what training costs in privacy, or which noise a budget needs.
///
/// The mechanism is DP-SGD (Abadi et al. 2016) on Poisson samples; neighbours differ by one record
/// more or less.
#[derive(Subcommand)]
#[command(after_long_help = "\
Examples:
  comity-sim privacy epsilon --q 0.01 --sigma 1 --steps 1000 --delta 1e-5
  comity-sim privacy calibrate --epsilon 3 --delta 1e-5 --q 0.01 --steps 1000
  comity-sim privacy plan examples/fashion/plan.toml")]
pub(crate) enum Privacy {
    /// The ε of a number of steps.
    Epsilon(EpsilonArgs),
    /// The least noise multiplier σ that keeps a number of steps within a budget.
    Calibrate(CalibrateArgs),
    /// What a plan costs each of its clients.
    Plan(PlanArgs),
}

#[derive(Args)]
#[command(after_long_help = "\
Example:
  comity-sim privacy epsilon --q 0.01 --sigma 1 --steps 1000 --delta 1e-5 --json")]
pub(crate) struct EpsilonArgs {
    /// Sampling rate: expected batch over number of records, above 0 and at most 1.
    #[arg(long)]
    q: f64,
    /// Noise multiplier: standard deviation of the noise over the clipping norm.
    #[arg(long)]
    sigma: f64,
    /// Number of steps in all.
    #[arg(long)]
    steps: u64,
    /// δ, above 0 and below 1; well below one over the number of records.
    #[arg(long)]
    delta: f64,
    /// Print as JSON; an infinite ε is null.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_long_help = "\
Example:
  comity-sim privacy calibrate --epsilon 3 --delta 1e-5 --q 0.01 --steps 1000 --json")]
pub(crate) struct CalibrateArgs {
    /// ε of the budget.
    #[arg(long)]
    epsilon: f64,
    /// δ of the budget.
    #[arg(long)]
    delta: f64,
    /// Sampling rate: expected batch over number of records, above 0 and at most 1.
    #[arg(long)]
    q: f64,
    /// Number of steps in all.
    #[arg(long)]
    steps: u64,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_long_help = "\
Example:
  comity-sim privacy plan examples/fashion/plan.toml --json")]
pub(crate) struct PlanArgs {
    /// Plan to work out.
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// A mechanism and its cost.
#[derive(Serialize)]
struct Cost {
    q: f64,
    sigma: f64,
    steps: u64,
    delta: f64,
    #[serde(flatten)]
    report: EpsilonReport,
}

/// What a plan costs one client; everything after `records_declared` is `None` without DP.
#[derive(Serialize)]
struct ClientCost {
    client: ClientId,
    records_declared: u64,
    steps_per_round: u32,
    steps: u64,
    q: Option<f64>,
    sigma: Option<f64>,
    epsilon: Option<f64>,
    delta: Option<f64>,
    bound: Option<BoundKind>,
}

impl Privacy {
    pub(crate) fn execute(&self) -> anyhow::Result<()> {
        match self {
            Self::Epsilon(args) => {
                let cost = Cost::of(args.q, args.sigma, args.steps, args.delta)?;
                if args.json { output::print_json(&cost) } else { output::print(&cost.text()) }
            }
            Self::Calibrate(args) => {
                let budget = Budget::new(args.epsilon, args.delta)?;
                let sigma = calibrate_noise_multiplier(budget, args.q, args.steps, &[])?;
                let cost = Cost::of(args.q, sigma, args.steps, args.delta)?;
                if args.json {
                    return output::print_json(&cost);
                }
                output::print(&format!("sigma {sigma}\n{}", cost.text()))
            }
            Self::Plan(args) => {
                let costs = plan_costs(&read_plan(&args.plan)?)?;
                if args.json { output::print_json(&costs) } else { output::print(&text(&costs)) }
            }
        }
    }
}

impl Cost {
    fn of(q: f64, sigma: f64, steps: u64, delta: f64) -> Result<Self, PrivacyError> {
        // The budget's own rule for δ, under any ε.
        Budget::new(1.0, delta)?;
        let mechanism = Mechanism::SampledGaussian { q, sigma, steps };
        mechanism.validate()?;
        Ok(Self { q, sigma, steps, delta, report: epsilon(&[mechanism], delta) })
    }

    fn text(&self) -> String {
        let Self { q, sigma, steps, delta, report } = self;
        let mark = |bound: BoundKind| if report.bound == bound { "  (smallest)" } else { "" };
        let mut text = format!(
            "{steps} steps at q = {q}, sigma = {sigma}, delta = {delta:e}\n\
             epsilon {:.6}\n  RDP             {:.6} at order {}{}\n",
            report.epsilon,
            report.rdp_epsilon,
            report.rdp_order,
            mark(BoundKind::Rdp),
        );
        match report.exact_gaussian_epsilon {
            Some(exact) => {
                let mark = mark(BoundKind::ExactGaussian);
                text += &format!("  exact Gaussian  {exact:.6}{mark}\n");
            }
            None => text += "  exact Gaussian  does not apply: q is below 1\n",
        }
        text
    }
}

fn plan_costs(plan: &Plan) -> anyhow::Result<Vec<ClientCost>> {
    let mut costs = Vec::with_capacity(plan.cohort.clients.len());
    for named in &plan.cohort.clients {
        let privacy = plan.privacy_plan(named).map_err(|error| {
            let hint = "raise privacy.epsilon, or lower rounds, local_epochs or the metrics' rho";
            Hint::attach(error.into(), hint)
        })?;
        let total = privacy.as_ref().map(|privacy| privacy.epsilon_total());
        let steps_per_round = plan.steps_per_round(named.records);
        costs.push(ClientCost {
            client: named.id.clone(),
            records_declared: named.records,
            steps_per_round,
            steps: u64::from(steps_per_round) * u64::from(plan.rounds),
            q: privacy.as_ref().map(|privacy| privacy.sampling_rate()),
            sigma: privacy.as_ref().map(|privacy| privacy.noise_multiplier()),
            epsilon: total.map(|total| total.epsilon),
            delta: privacy.as_ref().map(|privacy| privacy.budget().delta.get()),
            bound: total.map(|total| total.bound),
        });
    }
    Ok(costs)
}

fn text(costs: &[ClientCost]) -> String {
    let header = ["client", "declared records", "q", "steps a round", "steps", "σ", "ε", "δ"];
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let rows = costs.iter().map(|cost| {
        vec![
            cost.client.to_string(),
            cost.records_declared.to_string(),
            number(cost.q),
            cost.steps_per_round.to_string(),
            cost.steps.to_string(),
            number(cost.sigma),
            output::epsilon_text(cost.epsilon),
            cost.delta.map_or("-".to_owned(), |delta| format!("{delta:e}")),
        ]
    });
    output::table(header.map(str::to_owned).to_vec(), rows.collect())
}
