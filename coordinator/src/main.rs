//! `comity-coordinator`: the command line of the coordinator.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use comity_certs::Reason;
use comity_coordinator::commands::certs::RotateStep;
use comity_coordinator::commands::members::Invitee;
use comity_coordinator::{Home, OperatorRole, commands};
use comity_federation::{ClientId, Country, KeyFingerprint, RunId};
use tracing_subscriber::EnvFilter;

/// Coordinates runs of a federation over mTLS, and gives its operator the commands for it.
#[derive(Parser)]
#[command(
    name = "comity-coordinator",
    version,
    after_help = "\
Examples:
  comity-coordinator init --federation east-asia-health --name coordinator.example.org
  comity-coordinator serve
  comity-coordinator invite --country VN --institution \"Hanoi Lab\"   prints the token for its join
  comity-coordinator members list
  comity-coordinator revoke VN/hanoi-lab --reason \"its key was lost\"
  comity-coordinator run start plan.toml --watch
  comity-coordinator model export RUN --out model.safetensors
  comity-coordinator model certify RUN --model model.safetensors --out papers
  comity-coordinator receipts verify           are all records signed, by everybody who should?
  comity-coordinator journal verify            is the record whole, and where does it stand?
  comity-coordinator journal show --last 20    what happened last"
)]
struct Cli {
    /// Folder of this coordinator: configuration, certificates, journal, models.
    #[arg(long, short, global = true, default_value = "coordinator", value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new coordinator: its folder, root and issuing CA, server and operator certificates.
    Init {
        /// Short name of the federation, `a-z`, `0-9` and `-`; part of every certificate.
        #[arg(long, value_name = "NAME")]
        federation: String,
        /// Address and port to listen on; port 0 takes a free one.
        #[arg(long, default_value = "0.0.0.0:7443", value_name = "ADDRESS")]
        listen: SocketAddr,
        /// Host name or IP address by which clients reach it; may be given several times.
        #[arg(long = "name", required = true, value_name = "HOST")]
        names: Vec<String>,
        /// Address and port where members join [default: that of --listen with port 7444, or 0 if that has port 0].
        #[arg(long, value_name = "ADDRESS")]
        enrolment_listen: Option<SocketAddr>,
        /// COUNTRY/institution to invite at once: its token is printed; may be given several times.
        #[arg(long, value_name = "CLIENT")]
        invite: Vec<ClientId>,
    },
    /// Serve clients and operators until stopped with Ctrl-C.
    Serve,
    /// Invite an institution's node or an operator; prints one token, alone on stdout.
    #[command(group(clap::ArgGroup::new("who").required(true).args(["institution", "operator"])))]
    Invite {
        /// Country of the institution, ISO 3166, such as VN.
        #[arg(long, requires = "institution")]
        country: Option<Country>,
        /// Name of the institution, as people write it.
        #[arg(long, requires = "country", value_name = "TITLE")]
        institution: Option<String>,
        /// Its short name, `a-z`, `0-9` and `-` [default: made of the title].
        #[arg(long, requires = "institution")]
        id: Option<String>,
        /// Name of the operator, `a-z`, `0-9` and `-`.
        #[arg(long, requires = "role", value_name = "NAME")]
        operator: Option<String>,
        /// What the operator may do.
        #[arg(long, requires = "operator")]
        role: Option<OperatorRole>,
        /// For how long the invitation holds.
        #[arg(long, default_value = "24h", value_parser = duration)]
        expires: Duration,
        /// Why; it stands in the record.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Join as an operator, on a machine of one's own.
    Join {
        /// The token, or `-` to read it from stdin, where no list of processes shows it; or leave it out and set
        /// COMITY_JOIN_TOKEN.
        token: Option<String>,
    },
    /// Who belongs to the federation.
    #[command(subcommand)]
    Members(MembersCommand),
    /// Certificates of this folder.
    #[command(subcommand)]
    Certs(CertsCommand),
    /// End a membership at once, on open connections too.
    Revoke {
        /// COUNTRY/institution, or an operator's name.
        name: String,
        /// Why; it stands in the record, and the member is told.
        #[arg(long)]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Launch, list, show, watch, govern and abort runs.
    #[command(subcommand)]
    Run(RunCommand),
    /// Hand over models.
    #[command(subcommand)]
    Model(ModelCommand),
    /// What was signed: the record of every round, and the clients' signatures under it.
    #[command(subcommand)]
    Receipts(ReceiptsCommand),
    /// Check and list the coordinator's own record of everything; works while it serves.
    #[command(subcommand)]
    Journal(JournalCommand),
}

#[derive(Subcommand)]
enum ReceiptsCommand {
    /// List the rounds with their records, who contributed and who signed.
    List {
        /// Only those of this run.
        #[arg(long)]
        run: Option<RunId>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check every signature and every link, and the records against the journal's own steps.
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
        /// Ask the coordinator instead of reading its folder; this is the run's plan, TOML.
        #[arg(long, value_name = "PLAN")]
        remote: Option<PathBuf>,
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
enum CertsCommand {
    /// Print the name and the key's fingerprint of this folder's operator, which institutions pin in policy.toml.
    Fingerprint,
    /// Make the issuing CA of a country, such as TH; its first client needs it.
    AddCountry {
        /// Two letters, ISO 3166-1.
        country: Country,
        /// The root's key, if it is no longer where `init` wrote it.
        #[arg(long, value_name = "FILE")]
        root_key: Option<PathBuf>,
    },
    /// Revoke the issuing CA of a country, and every certificate that it signed.
    RevokeCa {
        /// Two letters, ISO 3166-1.
        country: Country,
        /// The root's key, if it is no longer where `init` wrote it.
        #[arg(long, value_name = "FILE")]
        root_key: Option<PathBuf>,
        /// unspecified, key-compromise, affiliation-changed, superseded, cessation or privilege-withdrawn.
        #[arg(long)]
        reason: Reason,
    },
    /// Sign the root's revocation list anew, once a year; the coordinator does it with all others.
    RefreshCrl {
        /// The root's key, if it is no longer where `init` wrote it.
        #[arg(long, value_name = "FILE")]
        root_key: Option<PathBuf>,
    },
    /// Replace the root and all issuing CAs by new ones, step by step.
    #[command(subcommand)]
    RotateCa(RotateStep),
    /// Print the roots, the countries and how long the revocation lists last.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum MembersCommand {
    /// List all: members, those who are invited, and those who were revoked.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one.
    Show {
        /// COUNTRY/institution, or an operator's name.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Approve one that asks to join, where two operators have to.
    Approve {
        /// COUNTRY/institution, or an operator's name.
        name: String,
        /// The key's fingerprint, as the new member reads it out.
        #[arg(long, value_name = "FINGERPRINT")]
        key: KeyFingerprint,
        /// Why; it stands in the record.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Refuse one that asks to join.
    Refuse {
        /// COUNTRY/institution, or an operator's name.
        name: String,
        /// Why; it stands in the record, and whoever asks is told.
        #[arg(long)]
        reason: String,
    },
    /// Change what an operator may do.
    Role {
        /// The operator's name.
        name: String,
        /// viewer, launcher or admin.
        role: OperatorRole,
        /// Why; it stands in the record.
        #[arg(long)]
        reason: String,
    },
}

/// A duration with its unit, such as `24h`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime_serde::re::humantime::parse_duration(text).map_err(|e| e.to_string())
}

#[derive(Subcommand)]
enum RunCommand {
    /// Launch a run of PLAN; prints the run's id.
    Start {
        /// The plan, TOML.
        plan: PathBuf,
        /// An institution's consent to the plan, as its `comity-client plan sign` wrote it; may be given several
        /// times.
        #[arg(long, value_name = "FILE")]
        consent: Vec<PathBuf>,
        /// Stay and watch it, as `run watch` does.
        #[arg(long)]
        watch: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List all runs.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one run: its clients, and who contributed to which round.
    Show {
        /// As printed by `run start`.
        run: RunId,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Watch a run until it has ended.
    Watch {
        /// As printed by `run start`.
        run: RunId,
        /// Print one JSON report a line, after every change.
        #[arg(long)]
        json: bool,
    },
    /// End a run now.
    Abort {
        /// As printed by `run start`.
        run: RunId,
        /// Why; every client sees it.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Go on without a client: what it contributed to the open round does not count.
    Exclude {
        /// As printed by `run start`.
        run: RunId,
        /// COUNTRY/institution.
        client: ClientId,
        /// Why; it stands in the record, and the client is told.
        #[arg(long)]
        reason: String,
    },
    /// Take back a client that was excluded; it is asked again in the next round.
    Readmit {
        /// As printed by `run start`.
        run: RunId,
        /// COUNTRY/institution.
        client: ClientId,
        /// Why; it stands in the record.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Subcommand)]
enum ModelCommand {
    /// Write a run's model as a safetensors file.
    Export {
        /// As printed by `run start`.
        run: RunId,
        /// The model of this round (0: the initial one) instead of the latest.
        #[arg(long)]
        round: Option<u32>,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Write also what the strategy remembers, as tensors `server.*`: the file can then be checked against
        /// the model's digest, and certified.
        #[arg(long)]
        server_state: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have the coordinator sign how a run's model came about: certificate.json, and a page to print.
    Certify {
        /// As printed by `run start`.
        run: RunId,
        /// What `comity-sim evaluate --json` printed.
        #[arg(long, value_name = "FILE")]
        evaluation: Option<PathBuf>,
        /// The model's file as `model export` wrote it: its SHA-256 stands in the certificate.
        #[arg(long, value_name = "FILE")]
        model: Option<PathBuf>,
        /// Folder for certificate.json and certificate.html.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a certificate, a model's file against it and, with --records, every round; needs no coordinator.
    Verify {
        /// certificate.json.
        #[arg(value_name = "CERTIFICATE")]
        certificate: PathBuf,
        /// The model's file.
        #[arg(long, value_name = "FILE")]
        model: PathBuf,
        /// The federation's root.pem, from a source that you trust.
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
        /// What `receipts export` wrote, at the coordinator or at a client.
        #[arg(long, value_name = "EXPORT")]
        records: Option<PathBuf>,
        /// Print JSON.
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
    let home = Home::new(&cli.dir);
    let result = match cli.command {
        Command::Init { federation, listen, names, enrolment_listen, invite } => {
            let init = commands::init::Init { federation, listen, enrolment_listen, names, invite };
            commands::init::init(&home, init)
        }
        Command::Serve => commands::serve::serve(&home),
        Command::Certs(command) => match command {
            CertsCommand::Fingerprint => commands::certs::fingerprint(&home),
            CertsCommand::AddCountry { country, root_key } => {
                commands::certs::add_country(&home, country, root_key.as_deref())
            }
            CertsCommand::RevokeCa { country, root_key, reason } => {
                commands::certs::revoke_ca(&home, country, root_key.as_deref(), reason)
            }
            CertsCommand::RefreshCrl { root_key } => {
                commands::certs::refresh_crl(&home, root_key.as_deref())
            }
            CertsCommand::RotateCa(step) => commands::certs::rotate(&home, step),
            CertsCommand::Status { json } => commands::certs::status(&home, json),
        },
        Command::Invite { country, institution, id, operator, role, expires, reason } => {
            let invitee = match (country, institution, operator, role) {
                (Some(country), Some(title), _, _) => {
                    Some(Invitee::Institution { country, title, id })
                }
                (_, _, Some(name), Some(role)) => Some(Invitee::Operator { name, role }),
                _ => None,
            };
            let invitee = invitee.expect("clap asks for one of them whole");
            commands::members::invite(&home, invitee, expires, reason)
        }
        Command::Join { token } => comity_certs::token_given(token)
            .map_err(Into::into)
            .and_then(|token| commands::join::join(&home, &token)),
        Command::Members(command) => match command {
            MembersCommand::List { json } => commands::members::list(&home, json),
            MembersCommand::Show { name, json } => commands::members::show(&home, &name, json),
            MembersCommand::Approve { name, key, reason } => {
                commands::members::decide(&home, name, Some(key), true, reason)
            }
            MembersCommand::Refuse { name, reason } => {
                commands::members::decide(&home, name, None, false, reason)
            }
            MembersCommand::Role { name, role, reason } => {
                commands::members::role(&home, name, role, reason)
            }
        },
        Command::Revoke { name, reason, json } => {
            commands::members::revoke(&home, name, reason, json)
        }
        Command::Run(command) => match command {
            RunCommand::Start { plan, consent, watch, json } => {
                commands::run::start(&home, &plan, &consent, watch, json)
            }
            RunCommand::List { json } => commands::run::list(&home, json),
            RunCommand::Show { run, json } => commands::run::show(&home, &run, json),
            RunCommand::Watch { run, json } => commands::run::watch(&home, &run, json),
            RunCommand::Abort { run, reason } => commands::run::abort(&home, &run, reason),
            RunCommand::Exclude { run, client, reason } => {
                commands::run::exclude(&home, &run, &client, reason)
            }
            RunCommand::Readmit { run, client, reason } => {
                commands::run::readmit(&home, &run, &client, reason)
            }
        },
        Command::Model(ModelCommand::Certify { run, evaluation, model, out, json }) => {
            let (evaluation, model) = (evaluation.as_deref(), model.as_deref());
            commands::certificate::certify(&home, &run, evaluation, model, &out, json)
        }
        Command::Model(ModelCommand::Verify { certificate, model, root, records, json }) => {
            let (root, records) = (root.as_deref(), records.as_deref());
            commands::certificate::verify(&certificate, &model, root, records, json)
        }
        Command::Receipts(command) => match command {
            ReceiptsCommand::List { run, json } => {
                commands::receipts::list(&home, run.as_ref(), json)
            }
            ReceiptsCommand::Verify { run, json } => {
                commands::receipts::verify(&home, run.as_ref(), json)
            }
            ReceiptsCommand::Export { run, remote, out } => {
                commands::receipts::export(&home, &run, remote.as_deref(), &out)
            }
            ReceiptsCommand::Compare { file, json } => {
                commands::receipts::compare(&home, &file, json)
            }
        },
        Command::Model(ModelCommand::Export { run, round, out, server_state, json }) => {
            commands::model::export(&home, &run, round, &out, server_state, json)
        }
        Command::Journal(command) => match command {
            JournalCommand::Verify { json } => commands::journal::verify(&home, json),
            JournalCommand::Show { run, last, json } => {
                commands::journal::show(&home, run.as_ref(), last, json)
            }
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
