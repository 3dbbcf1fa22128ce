//! `comity-sim`: the researcher's tool.  A federation in one process, and the privacy calculator.

mod commands;
mod interrupt;
mod output;
mod overrides;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use comity_simulator::SimulationError;
use mimalloc::MiMalloc;

use crate::output::Hint;

/// Tensors come and go with each layer; this allocator keeps their memory, where the system's gives it
/// back and has it cleared again.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Simulate a Comity federation in one process.
///
/// The simulator runs the same plan, with the same rules and arithmetic, as coordinator and
/// clients do over the network; it skips only wire and disk.
#[derive(Parser)]
#[command(name = "comity-sim", version, propagate_version = true, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  Run the sample plan and keep its model:
    comity-sim run examples/fashion/plan.toml --world examples/fashion/world.toml --out target/sim
  Compare two learning rates, over five seeds each:
    comity-sim sweep examples/fashion/plan.toml --world examples/fashion/world.toml \\
        --set training.optimizer.learning_rate=24,12 --seeds 0..4 --out target/sweep
  Score a model on the public test set:
    comity-sim evaluate target/sim/model.safetensors \\
        --plan examples/fashion/plan.toml --world examples/fashion/world.toml
  Does the code keep its promise? One record more or less, everything else the same:
    comity-sim audit replay
  What would 1000 steps cost?
    comity-sim privacy epsilon --q 0.01 --sigma 1 --steps 1000 --delta 1e-5

Data go to stdout (add --json for programs), progress and errors to stderr.";

#[derive(Subcommand)]
enum Command {
    /// Run a plan over a world's data, round by round.
    Run(commands::run::Run),
    /// Make a run's report anew, or compare several runs.
    Report(commands::report::Report),
    /// Run every combination of settings, for every seed, and compare them.
    Sweep(commands::sweep::Sweep),
    /// Run a sweep on many machines that share a folder or a bucket.
    #[command(subcommand)]
    Shard(commands::shard::Shard),
    /// Write each client's share of a world's data as files of its own.
    Split(commands::split::Split),
    /// Score models on a world's public test set.
    Evaluate(commands::evaluate::Evaluate),
    /// Fetch public data sets for the examples.
    #[command(subcommand)]
    Data(commands::data::Data),
    /// Work out what training costs in privacy, or which noise a budget needs.
    #[command(subcommand)]
    Privacy(commands::privacy::Privacy),
    /// Look for defects in what differential privacy rests on.
    #[command(subcommand)]
    Audit(commands::audit::Audit),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(command) => command.execute(),
        Command::Report(command) => command.execute(),
        Command::Sweep(command) => command.execute(),
        Command::Shard(command) => command.execute(),
        Command::Split(command) => command.execute(),
        Command::Evaluate(command) => command.execute(),
        Command::Data(command) => command.execute(),
        Command::Privacy(command) => command.execute(),
        Command::Audit(command) => command.execute(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let attached = error.downcast_ref::<Hint>().map(|hint| hint.advice.as_str());
            let known = error.downcast_ref::<SimulationError>().and_then(SimulationError::hint);
            if let Some(hint) = attached.or(known) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
