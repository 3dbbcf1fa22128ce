//! `comity-client`: the command line of the node.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use comity_certs::Clock;
use comity_client::commands;
use comity_client::commands::join::{NewData, NewNode};
use comity_federation::{Approval, RunId};
use mimalloc::MiMalloc;
use tracing_subscriber::EnvFilter;

/// Tensors come and go with each layer; this allocator keeps their memory, where the system's gives it
/// back and has it cleared again.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The node of one institution in a federation.
///
/// A node dials out to the coordinator, agrees to plans that its institution allows, trains on
/// its own data, and sends only what the privacy ledger has paid for.
#[derive(Parser)]
#[command(
    name = "comity-client",
    version,
    after_help = "\
Examples:
  comity-client join - --records 21000 --images i.idx --labels l.idx   asks for the token
  comity-client check --plan plan.toml     is everything in order, and what would the plan cost?
  comity-client start                      join the federation and train
  comity-client policy explain plan.toml   rule by rule, what would happen if it were offered?
  comity-client run list                   which runs were offered, and which wait for the steward?
  comity-client run approve RUN            let it train here
  comity-client model tune RUN --model m.safetensors --out ours.safetensors   a finished model, for us alone
  comity-client ledger show --json         what has been spent, for a regulator's tools
  comity-client ledger forecast plan.toml  what one more run would cost
  comity-client privacy statement          what was promised to whom, and at what epsilon
  comity-client privacy verify             the proof, from the node's own journal
  comity-client egress list --last 20      what left this institution
  comity-client egress export --out f.json everything that left, signed, for a regulator
  comity-client receipts verify            did the coordinator count what we sent, as it signed?
  comity-client receipts compare FILE      was another member shown the same?
  comity-client journal show --last 20     what happened last"
)]
struct Cli {
    /// The node's configuration; docs/samples/client.toml explains every key.
    #[arg(long, short, global = true, default_value = "client.toml", value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check configuration, certificate, device, data and connection, and say what to mend.
    Check {
        /// Also check this plan against the policy and the data, and say what it would cost.
        #[arg(long, value_name = "PLAN")]
        plan: Option<PathBuf>,
        /// Print findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Join the federation with an operator's invitation: makes the key here, and writes client.toml and policy.toml.
    #[command(group(clap::ArgGroup::new("data").args(["images", "csv"])))]
    Join {
        /// The token, or `-` to read it from stdin, where no list of processes shows it; or leave it out and set
        /// COMITY_JOIN_TOKEN.
        token: Option<String>,
        /// Folder of the new node [default: that of --config].
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The number of records that the institution makes public, rounded.
        #[arg(long, value_name = "N")]
        records: u64,
        /// The number of persons that it makes public, rounded, for runs that protect persons.
        #[arg(long, value_name = "N")]
        persons: Option<u64>,
        /// IDX file with the features.
        #[arg(long, requires = "labels", value_name = "FILE")]
        images: Option<PathBuf>,
        /// IDX file with the labels.
        #[arg(long, requires = "images", value_name = "FILE")]
        labels: Option<PathBuf>,
        /// Table with names in its first row.
        #[arg(long, requires = "label", value_name = "FILE")]
        csv: Option<PathBuf>,
        /// Name of the column that is the label.
        #[arg(long, requires = "csv", value_name = "COLUMN")]
        label: Option<String>,
        /// Most that all runs together may learn; without it no private run is allowed.
        #[arg(long, requires = "delta")]
        epsilon: Option<f64>,
        /// The delta of that epsilon.
        #[arg(long, requires = "epsilon")]
        delta: Option<f64>,
        /// Allow runs without differential privacy.
        #[arg(long)]
        without_dp: bool,
        /// Let the node agree by itself to plans that the policy allows; otherwise they wait for the steward.
        #[arg(long)]
        approve_automatically: bool,
    },
    /// Renew the node's certificate now; a running node does so by itself.
    Renew,
    /// Follow the coordinator and train until stopped with Ctrl-C.
    Start {
        /// Stop by itself after this many runs have ended; 0 goes on for ever.
        #[arg(long, default_value_t = 0, value_name = "N")]
        exit_after_runs: u32,
    },
    /// Finished models, for this institution alone.
    #[command(subcommand)]
    Model(ModelCommand),
    /// The privacy that has been spent on this institution's data.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// What a regulator reads, and its proof.
    #[command(subcommand)]
    Privacy(PrivacyCommand),
    /// Everything that left this institution: list it, check it, make it again, hand it over.
    #[command(subcommand)]
    Egress(EgressCommand),
    /// What the coordinator signed: receipts for updates, and the record of every round.
    #[command(subcommand)]
    Receipts(ReceiptsCommand),
    /// Check and list the node's own record of everything; works while it runs.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// The runs that were offered here: look at them, approve and refuse; works while the node runs.
    #[command(subcommand)]
    Run(RunCommand),
    /// What this institution allows.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Plans of runs that are not offered yet.
    #[command(subcommand)]
    Plan(PlanCommand),
}

#[derive(Subcommand)]
enum ModelCommand {
    /// Train a finished run's model on with this institution's records. Nothing is sent; the result is NOT private.
    Tune {
        /// As `run list` prints it.
        run: RunId,
        /// The run's last model, as the operator exported it.
        #[arg(long, value_name = "FILE.safetensors")]
        model: PathBuf,
        /// Passes over the records.
        #[arg(long, default_value_t = 1, value_name = "N")]
        epochs: u32,
        /// The file to write; it stays here.
        #[arg(long, value_name = "FILE.safetensors")]
        out: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum RunCommand {
    /// List the runs that were offered, and which wait for the steward.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one run: its plan, who ordered it, what the policy says.
    Show {
        /// As `run list` prints it.
        run: RunId,
        /// Print JSON, with the whole plan.
        #[arg(long)]
        json: bool,
    },
    /// Approve a run: the node agrees to its plan.
    Approve {
        /// As `run list` prints it.
        run: RunId,
        /// The plan that was shown, 8 or more digits of its digest: another one is not approved.
        #[arg(long, value_name = "DIGEST")]
        plan: Option<String>,
        /// Why; it stands in the journal.
        #[arg(long, default_value = "")]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Refuse a run, also one that was agreed to: nothing more leaves for it.
    Refuse {
        /// As `run list` prints it.
        run: RunId,
        /// The plan that was shown, 8 or more digits of its digest.
        #[arg(long, value_name = "DIGEST")]
        plan: Option<String>,
        /// Why; it reaches the operator.
        #[arg(long)]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Read the policy and say what it allows.
    Check,
    /// Say rule by rule what would happen if PLAN were offered; exits with 1 if it would be declined.
    Explain {
        /// The plan, TOML.
        plan: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum PlanCommand {
    /// Sign this institution's consent to PLAN, for the operator to hand in.
    Sign {
        /// The plan, TOML.
        plan: PathBuf,
        /// The new file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
enum ReceiptsCommand {
    /// List the rounds with their records, own updates and receipts.
    List {
        /// Only those of this run.
        #[arg(long)]
        run: Option<RunId>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check every signature and every link, and own releases against them.
    Verify {
        /// Only those of this run.
        run: Option<RunId>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the papers of a run to a file, for another member to compare.
    Export {
        /// Which run.
        run: RunId,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Compare with the export of another member: were we all shown the same?
    Compare {
        /// What `receipts export` wrote there.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum EgressCommand {
    /// List what left: time, kind, bytes, digest, run, round, and what the run had cost by then.
    List {
        /// Only what left for this run.
        #[arg(long)]
        run: Option<RunId>,
        /// Only the last N lines.
        #[arg(long, value_name = "N")]
        last: Option<usize>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one line whole, with what the message said.
    Show {
        /// As printed by `egress list`.
        n: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check that each message is what its digest says, and each update was paid for before it left.
    Verify {
        /// Check this export instead: its signature, and this node's journal if it is of this node.
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
        /// The federation's root certificate, if it is not this node's.
        #[arg(long, value_name = "FILE", requires = "export")]
        root: Option<PathBuf>,
    },
    /// Write the very bytes that left, made again from journal and store.
    Replay {
        /// As printed by `egress list`.
        n: u64,
        /// The new file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write every line to a new file, signed with the node's key.
    Export {
        /// The new file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
enum JournalCommand {
    /// Check every record, and print their number, the head's hash and what a crash cut off.
    Verify {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the records, one a line: number, time, run, who, what.
    Show {
        /// Only those of this run.
        #[arg(long)]
        run: Option<RunId>,
        /// Only the last N of them.
        #[arg(long, value_name = "N")]
        last: Option<usize>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum PrivacyCommand {
    /// Print unit, epsilon at three deltas, sampler, randomness, noise and exclusions.
    Statement {
        /// Print it as JSON, which `privacy verify` can check later.
        #[arg(long)]
        json: bool,
    },
    /// Check journal, ledger, noise and releases against one another; needs no network.
    Verify {
        /// Also check that this statement (JSON) is what the journal says.
        #[arg(long, value_name = "FILE")]
        statement: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// Show what each run has spent and what is left; works while the node runs.
    Show {
        /// Print everything, with every entry, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what a run under a plan would cost, and whether the budget has room for it.
    Forecast {
        /// The plan.
        #[arg(value_name = "PLAN")]
        plan: PathBuf,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "failpoints")]
    let _failpoints = comity_journal::failpoint::setup();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let result = match cli.command {
        Command::Check { plan, json } => commands::check::check(&cli.config, plan.as_deref(), json),
        Command::Join {
            token,
            dir,
            records,
            persons,
            images,
            labels,
            csv,
            label,
            epsilon,
            delta,
            without_dp,
            approve_automatically,
        } => {
            let path = dir.map_or(cli.config, |dir| dir.join("client.toml"));
            let data = match (images, labels, csv, label) {
                (Some(images), Some(labels), ..) => NewData::Idx { images, labels },
                (_, _, Some(path), Some(label)) => NewData::Csv { path, label },
                _ => NewData::Unsaid,
            };
            let (budget, approval) = (
                epsilon.zip(delta),
                if approve_automatically { Approval::Auto } else { Approval::Ask },
            );
            let node = NewNode { records, persons, data, budget, without_dp, approval };
            comity_certs::token_given(token).map_err(Into::into).and_then(|token| {
                commands::join::join(&path, &token, &node, &Clock::system()).map(|()| true)
            })
        }
        Command::Renew => commands::join::renew(&cli.config).map(|()| true),
        Command::Start { exit_after_runs } => {
            commands::start::start(&cli.config, exit_after_runs).map(|()| true)
        }
        Command::Ledger(LedgerCommand::Show { json }) => {
            commands::ledger::show(&cli.config, json).map(|()| true)
        }
        Command::Ledger(LedgerCommand::Forecast { plan, json }) => {
            commands::ledger::forecast(&cli.config, &plan, json)
        }
        Command::Privacy(PrivacyCommand::Statement { json }) => {
            commands::privacy::statement(&cli.config, json).map(|()| true)
        }
        Command::Privacy(PrivacyCommand::Verify { statement }) => {
            commands::privacy::verify(&cli.config, statement.as_deref()).map(|()| true)
        }
        Command::Egress(command) => match command {
            EgressCommand::List { run, last, json } => {
                commands::egress::list(&cli.config, run.as_ref(), last, json)
            }
            EgressCommand::Show { n, json } => commands::egress::show(&cli.config, n, json),
            EgressCommand::Verify { export, root } => {
                commands::egress::verify(&cli.config, export.as_deref(), root.as_deref())
            }
            EgressCommand::Replay { n, out } => commands::egress::replay(&cli.config, n, &out),
            EgressCommand::Export { out } => commands::egress::export(&cli.config, &out),
        }
        .map(|()| true),
        Command::Run(RunCommand::List { json }) => {
            commands::run::list(&cli.config, json).map(|()| true)
        }
        Command::Run(RunCommand::Show { run, json }) => {
            commands::run::show(&cli.config, &run, json).map(|()| true)
        }
        Command::Run(RunCommand::Approve { run, plan, reason, json }) => {
            commands::run::decide(&cli.config, &run, plan.as_deref(), true, &reason, json)
                .map(|()| true)
        }
        Command::Run(RunCommand::Refuse { run, plan, reason, json }) => {
            commands::run::decide(&cli.config, &run, plan.as_deref(), false, &reason, json)
                .map(|()| true)
        }
        Command::Policy(PolicyCommand::Check) => {
            commands::policy::check(&cli.config).map(|()| true)
        }
        Command::Policy(PolicyCommand::Explain { plan, json }) => {
            commands::policy::explain(&cli.config, &plan, json)
        }
        Command::Model(ModelCommand::Tune { run, model, epochs, out, json }) => {
            commands::model::tune(&cli.config, &run, &model, epochs, &out, json).map(|()| true)
        }
        Command::Plan(PlanCommand::Sign { plan, out }) => {
            commands::plan::sign(&cli.config, &plan, &out).map(|()| true)
        }
        Command::Receipts(ReceiptsCommand::List { run, json }) => {
            commands::receipts::list(&cli.config, run.as_ref(), json).map(|()| true)
        }
        Command::Receipts(ReceiptsCommand::Verify { run, json }) => {
            commands::receipts::verify(&cli.config, run.as_ref(), json)
        }
        Command::Receipts(ReceiptsCommand::Export { run, out }) => {
            commands::receipts::export(&cli.config, &run, &out).map(|()| true)
        }
        Command::Receipts(ReceiptsCommand::Compare { file, json }) => {
            commands::receipts::compare(&cli.config, &file, json)
        }
        Command::Journal(JournalCommand::Verify { json }) => {
            commands::journal::verify(&cli.config, json).map(|()| true)
        }
        Command::Journal(JournalCommand::Show { run, last, json }) => {
            commands::journal::show(&cli.config, run.as_ref(), last, json).map(|()| true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
