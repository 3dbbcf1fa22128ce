//! `comity-sim privacy`: what training costs, and which noise a budget needs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use comity_federation::{ClientId, Plan};
use comity_privacy::{
    BoundKind, Budget, EpsilonReport, FixedSchedule, Mechanism, PrivacyError, PrivacyUnit,
    Relation, calibrate_noise_multiplier, epsilon,
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
  comity-sim privacy epsilon --q 0.01 --sigma 1 --steps 1000 --delta 1e-5 --json
  comity-sim privacy epsilon --run 0.01,1,1000 --run 0.02,1.5,400 --delta 1e-5")]
pub(crate) struct EpsilonArgs {
    /// Sampling rate: expected batch over number of records, above 0 and at most 1.
    #[arg(long, requires = "sigma", requires = "steps", required_unless_present = "run")]
    q: Option<f64>,
    /// Noise multiplier: standard deviation of the noise over the clipping norm.
    #[arg(long, requires = "q")]
    sigma: Option<f64>,
    /// Number of steps in all.
    #[arg(long, requires = "q")]
    steps: Option<u64>,
    /// One of several runs on the same data set, all fixed in advance; give it for each.
    #[arg(long, value_name = "Q,SIGMA,STEPS", value_parser = parse_run)]
    run: Vec<Mechanism>,
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

/// Mechanisms and their cost.
#[derive(Serialize)]
struct Cost {
    mechanisms: Vec<Mechanism>,
    delta: f64,
    #[serde(flatten)]
    report: EpsilonReport,
    replace_one: EpsilonReport,
}

/// What `calibrate` found.
#[derive(Serialize)]
struct Calibrated {
    sigma: f64,
    #[serde(flatten)]
    cost: Cost,
}

/// Reads `q,sigma,steps`.
fn parse_run(text: &str) -> Result<Mechanism, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let [q, sigma, steps] = parts[..] else {
        return Err(
            "write three numbers with commas between them, such as 0.01,1.0,1000".to_owned()
        );
    };
    let number = |text: &str, what: &str| {
        text.parse::<f64>().map_err(|_| format!("{what} {text:?} is not a number"))
    };
    let mechanism = Mechanism::SampledGaussian {
        q: number(q, "the sampling rate")?,
        sigma: number(sigma, "sigma")?,
        steps: steps.parse().map_err(|_| format!("steps {steps:?} is not a whole number"))?,
    };
    mechanism.validate().map_err(|error| error.to_string())?;
    Ok(mechanism)
}

/// What a plan costs one client; `None` without DP.
#[derive(Serialize)]
struct ClientCost {
    client: ClientId,
    unit: Option<PrivacyUnit>,
    units_declared: u64,
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
                let mut mechanisms = args.run.clone();
                if let (Some(q), Some(sigma), Some(steps)) = (args.q, args.sigma, args.steps) {
                    mechanisms.push(Mechanism::SampledGaussian { q, sigma, steps });
                }
                let cost = Cost::of(mechanisms, args.delta)?;
                if args.json { output::print_json(&cost) } else { output::print(&cost.text()) }
            }
            Self::Calibrate(args) => {
                let budget = Budget::new(args.epsilon, args.delta)?;
                let sigma = calibrate_noise_multiplier(budget, args.q, args.steps, &[])?;
                let mechanism = Mechanism::SampledGaussian { q: args.q, sigma, steps: args.steps };
                let cost = Cost::of(vec![mechanism], args.delta)?;
                if args.json {
                    return output::print_json(&Calibrated { sigma, cost });
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
    fn of(mechanisms: Vec<Mechanism>, delta: f64) -> Result<Self, PrivacyError> {
        // The budget's own rule for δ, under any ε.
        Budget::new(1.0, delta)?;
        for mechanism in &mechanisms {
            mechanism.validate()?;
        }
        let schedule = FixedSchedule::declared(mechanisms.clone());
        let report = epsilon(&schedule, Relation::AddOrRemoveOne, delta);
        let replace_one = epsilon(&schedule, Relation::ReplaceOne, delta);
        Ok(Self { mechanisms, delta, report, replace_one })
    }

    fn text(&self) -> String {
        let Self { mechanisms, delta, report, replace_one } = self;
        let mark = |bound: BoundKind| if report.bound == bound { "  (smallest)" } else { "" };
        let mut text = String::new();
        for mechanism in mechanisms {
            if let Mechanism::SampledGaussian { q, sigma, steps } = mechanism {
                text += &format!("{steps} steps at q = {q}, sigma = {sigma}\n");
            }
        }
        text += &format!(
            "epsilon {:.6} at delta = {delta:e}, add or remove one record\n\
             \x20 RDP             {:.6} at order {}{}\n",
            report.epsilon,
            report.rdp_epsilon,
            report.rdp_order,
            mark(BoundKind::Rdp),
        );
        match report.pld_epsilon {
            Some(pld) => text += &format!("  PLD             {pld:.6}{}\n", mark(BoundKind::Pld)),
            None => {
                text +=
                    "  PLD             not computed: another bound is exact, or it would not fit\n"
            }
        }
        match report.exact_gaussian_epsilon {
            Some(exact) => {
                let mark = mark(BoundKind::ExactGaussian);
                text += &format!("  exact Gaussian  {exact:.6}{mark}\n");
            }
            None => text += "  exact Gaussian  does not apply: q is below 1\n",
        }
        text += &format!(
            "epsilon {} if one record is replaced by another\n",
            number(replace_one.epsilon)
        );
        text
    }
}

fn number(epsilon: f64) -> String {
    if epsilon.is_finite() { format!("{epsilon:.6}") } else { "unknown".to_owned() }
}

fn plan_costs(plan: &Plan) -> anyhow::Result<Vec<ClientCost>> {
    let mut costs = Vec::with_capacity(plan.cohort.clients.len());
    let plans = plan.privacy_plans().map_err(|error| {
        let hint = "raise privacy.epsilon, or lower rounds, local_epochs or local_steps, or the metrics' rho";
        Hint::attach(error.into(), hint)
    })?;
    for (named, privacy) in plan.cohort.clients.iter().zip(plans) {
        let total = privacy.as_ref().map(|privacy| privacy.epsilon_total());
        let steps_per_round = plan.steps_per_round(named);
        costs.push(ClientCost {
            client: named.id.clone(),
            unit: plan.unit(),
            units_declared: plan.units_declared(named),
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
    let header = ["client", "declared units", "q", "steps a round", "steps", "σ", "ε", "δ"];
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let rows = costs.iter().map(|cost| {
        vec![
            cost.client.to_string(),
            cost.units_declared.to_string(),
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
