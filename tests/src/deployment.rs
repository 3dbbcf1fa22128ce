//! A federation of real processes on loopback.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use comity_certs::{Role, Signer};
use comity_client::policy_file::{NewPolicy, new_for};
use comity_federation::{Approval, ClientId, PinnedOperator, RunReport};
use serde_json::Value;

/// How long a process may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Where programs built with failpoints read them; see `comity_journal::failpoint`.
const FAILPOINTS: &str = "FAILPOINTS";
/// How long between looks at something that another process does.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Where the programs under test lie: beside this one.
#[derive(Clone, Debug)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// The folder of the running program, or its parent for a test.
    ///
    /// # Errors
    /// If the programs were not built.
    pub fn find() -> anyhow::Result<Self> {
        let exe = std::env::current_exe()?;
        let mut dir = exe.parent().context("this program lies in no folder")?;
        if dir.ends_with("deps") {
            dir = dir.parent().context("deps lies in no folder")?;
        }
        for name in ["comity-coordinator", "comity-client", "comity-sim"] {
            ensure!(
                dir.join(name).exists(),
                "{} is missing; build it with `cargo build --workspace`",
                dir.join(name).display()
            );
        }
        Ok(Self(dir.to_owned()))
    }

    /// The folder in which they lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// A command that runs `name`.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.0.join(name))
    }
}

/// What a program that has ended printed.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its data.
    pub stdout: String,
    /// Its messages.
    pub stderr: String,
}

impl Finished {
    /// Runs `command` to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn of(command: &mut Command) -> anyhow::Result<Self> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{:?} cannot be started", command.get_program()))?;
        Ok(Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The same, if it succeeded.
    ///
    /// # Errors
    /// With what it printed, if it did not.
    pub fn success(self) -> anyhow::Result<Self> {
        ensure!(self.status.success(), "{}: {}{}", self.status, self.stderr, self.stdout);
        Ok(self)
    }

    /// Its data as JSON.
    ///
    /// # Errors
    /// If they are not JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }
}

/// What a client of a [`Deployment`] is given.
#[derive(Clone, Debug)]
pub struct ClientSetup {
    /// Who.
    pub id: ClientId,
    /// The line `source = …` of its configuration.
    pub source: String,
    /// Its declared number of records.
    pub records: u64,
    /// Its budget, (epsilon, delta).
    pub budget: Option<(f64, f64)>,
    /// Whether it allows runs without differential privacy.
    pub without_dp: bool,
}

/// A process that is ended when it is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(command: &mut Command, log: PathBuf) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{:?} cannot be started", command.get_program()))?;
        Ok(Self { child, log })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to end (SIGTERM) and waits.
    fn stop(mut self) -> anyhow::Result<ExitStatus> {
        let pid = self.child.id().to_string();
        Finished::of(Command::new("kill").args(["-TERM", &pid]))?.success()?;
        self.wait(Duration::from_secs(20))
    }

    fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "a process did not end; its log:\n{}", self.log());
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing to do about a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One coordinator and its clients, each a process with a folder of its own.
#[derive(Debug)]
pub struct Deployment {
    binaries: Binaries,
    dir: PathBuf,
    coordinator: Option<Process>,
    clients: BTreeMap<ClientId, Process>,
    n_files_max: Option<u32>,
}

impl Deployment {
    /// Makes a coordinator of `federation` in `dir`, which does not serve yet.
    ///
    /// # Errors
    /// If `init` fails.
    pub fn init(binaries: Binaries, dir: &Path, federation: &str) -> anyhow::Result<Self> {
        let init = ["init", "--federation", federation, "--listen", "127.0.0.1:0"];
        let init = [&init[..], &["--enrolment-listen", "127.0.0.1:0"]].concat();
        let init = [&init[..], &["--name", "127.0.0.1"]].concat();
        Ok(Self::init_with(binaries, dir, &init)?.0)
    }

    /// [`init`](Self::init) with other arguments, and what it printed.
    ///
    /// # Errors
    /// If `init` fails.
    pub fn init_with(
        binaries: Binaries,
        dir: &Path,
        init: &[&str],
    ) -> anyhow::Result<(Self, Finished)> {
        fs::create_dir_all(dir)?;
        let made = Self {
            binaries,
            dir: dir.to_owned(),
            coordinator: None,
            clients: BTreeMap::new(),
            n_files_max: None,
        };
        let printed = made.operator(init)?.success()?;
        Ok((made, printed))
    }

    /// The coordinator's folder.
    #[must_use]
    pub fn coordinator_dir(&self) -> PathBuf {
        self.dir.join("coordinator")
    }

    /// The folder of `client`.
    #[must_use]
    pub fn client_dir(&self, client: &ClientId) -> PathBuf {
        self.dir.join(format!("{}-{}", client.country(), client.institution()))
    }

    /// Daemons started from now on may have at most so many files open.
    pub fn limit_files(&mut self, n_files_max: Option<u32>) {
        self.n_files_max = n_files_max;
    }

    /// A daemon's command, under the limits of this deployment.
    fn limited(&self, command: Command) -> Command {
        let Some(n_files_max) = self.n_files_max else { return command };
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -n {n_files_max}; exec \"$0\" \"$@\""));
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }

    /// Starts the coordinator and waits until it serves.
    ///
    /// # Errors
    /// If it ends at once, with its log.
    pub fn serve(&mut self) -> anyhow::Result<()> {
        self.serve_failing("")
    }

    /// [`serve`](Self::serve), with these failpoints.
    ///
    /// # Errors
    /// If it ends at once, with its log.
    pub fn serve_failing(&mut self, failpoints: &str) -> anyhow::Result<()> {
        self.coordinator = None;
        let address = self.coordinator_dir().join("address");
        let _ = fs::remove_file(&address);
        let mut command = self.binaries.command("comity-coordinator");
        command.arg("--dir").arg(self.coordinator_dir()).arg("serve");
        let mut command = self.limited(command);
        command.env(FAILPOINTS, failpoints);
        let mut process = Process::start(&mut command, self.coordinator_log())?;
        let end = Instant::now() + START_TIMEOUT;
        while !address.exists() {
            if process.child.try_wait()?.is_some() || Instant::now() > end {
                bail!("the coordinator does not serve:\n{}", process.log());
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        self.coordinator = Some(process);
        Ok(())
    }

    /// `https://HOST:PORT` of the serving coordinator.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn url(&self) -> anyhow::Result<String> {
        let address = fs::read_to_string(self.coordinator_dir().join("address"))
            .context("the coordinator does not serve")?;
        Ok(format!("https://{address}"))
    }

    /// Runs an operator's command to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn operator(&self, args: &[&str]) -> anyhow::Result<Finished> {
        Finished::of(
            self.binaries
                .command("comity-coordinator")
                .arg("--dir")
                .arg(self.coordinator_dir())
                .args(args),
        )
    }

    /// Runs the command of an operator whose folder is `dir` to its end, with `token` for `join`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn operator_at(&self, dir: &Path, args: &[&str], token: &str) -> anyhow::Result<Finished> {
        let mut command = self.binaries.command("comity-coordinator");
        Finished::of(command.arg("--dir").arg(dir).args(args).env("COMITY_JOIN_TOKEN", token))
    }

    /// Starts an operator's command whose stdout the caller reads.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn operator_piped(&self, args: &[&str]) -> anyhow::Result<Child> {
        Ok(self
            .binaries
            .command("comity-coordinator")
            .arg("--dir")
            .arg(self.coordinator_dir())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?)
    }

    /// Makes folder, certificates, policy and configuration of a client.
    ///
    /// # Errors
    /// If no certificate can be issued, or files cannot be written.
    pub fn add_client(&self, setup: &ClientSetup) -> anyhow::Result<()> {
        let dir = self.client_dir(&setup.id);
        fs::create_dir_all(&dir)?;
        if !dir.join("certs").exists() {
            self.join(&setup.id, &dir)?;
        }
        fs::write(dir.join("policy.toml"), self.policy(setup)?)?;
        let text = format!(
            "coordinator = \"{}\"\nenrolment = \"{}\"\ncertificates = \"certs\"\nstate = \"state\"\npolicy = \"policy.toml\"\n\
             device = \"cpu\"\n\n[data]\nrecords = {}\n{}\n",
            self.url()?,
            self.enrolment_url()?,
            setup.records,
            setup.source,
        );
        Ok(fs::write(dir.join("client.toml"), text)?)
    }

    /// Invites `client`, and joins as it in `dir`: its key, certificate and root lie in `dir/certs`.
    ///
    /// # Errors
    /// If either is refused.
    pub fn join(&self, client: &ClientId, dir: &Path) -> anyhow::Result<()> {
        let token = self.invite(client)?;
        self.join_with(&token, dir)?.success()?;
        Ok(())
    }

    /// The token of a new invitation of `client`.
    ///
    /// # Errors
    /// If it is refused.
    pub fn invite(&self, client: &ClientId) -> anyhow::Result<String> {
        let (country, id) = (client.country().to_string(), client.institution());
        let invite = ["invite", "--country", &country, "--institution", id, "--id", id];
        Ok(self.operator(&invite)?.success()?.stdout.trim().to_owned())
    }

    /// Runs `comity-client join` with `token` in `dir`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn join_with(&self, token: &str, dir: &Path) -> anyhow::Result<Finished> {
        let mut command = self.binaries.command("comity-client");
        command.arg("join").arg("--dir").arg(dir).args(["--records", "1", "--without-dp"]);
        Finished::of(command.env("COMITY_JOIN_TOKEN", token))
    }

    /// `https://HOST:PORT` at which members of the serving coordinator join.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn enrolment_url(&self) -> anyhow::Result<String> {
        let address = fs::read_to_string(self.coordinator_dir().join("enrolment_address"))
            .context("the coordinator does not serve")?;
        Ok(format!("https://{address}"))
    }

    /// A policy that takes this deployment's operator's orders, and limits nothing but privacy.
    fn policy(&self, setup: &ClientSetup) -> anyhow::Result<String> {
        let new = NewPolicy {
            operators: vec![self.operator_key()?],
            budget: setup.budget,
            without_dp: setup.without_dp,
            approval: Approval::Auto,
        };
        let text = new_for(&new).replace("64 MiB", "1 TiB");
        Ok(text.replace("parameters_max = 100000000", "parameters_max = 10000000000"))
    }

    /// The operator's name and key, which institutions pin.
    ///
    /// # Errors
    /// If its certificate cannot be read.
    pub fn operator_key(&self) -> anyhow::Result<PinnedOperator> {
        let certs = self.coordinator_dir().join("certs");
        let signer = Signer::read(&certs.join("operator.pem"), &certs.join("operator.key"))?;
        let Role::Operator(name) = &signer.identity().role else {
            bail!("operator.pem is of {}", signer.identity())
        };
        Ok(PinnedOperator { name: name.clone(), key: signer.fingerprint() })
    }

    /// Starts a client, which ends by itself after `exit_after_runs` runs.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_client(&mut self, client: &ClientId, exit_after_runs: u32) -> anyhow::Result<()> {
        self.start_client_failing(client, exit_after_runs, "")
    }

    /// [`start_client`](Self::start_client), with these failpoints.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_client_failing(
        &mut self,
        client: &ClientId,
        exit_after_runs: u32,
        failpoints: &str,
    ) -> anyhow::Result<()> {
        self.clients.remove(client);
        let mut command = self.client_command(client);
        command.args(["start", "--exit-after-runs", &exit_after_runs.to_string()]);
        let mut command = self.limited(command);
        command.env(FAILPOINTS, failpoints);
        let process = Process::start(&mut command, self.client_log(client))?;
        self.clients.insert(client.clone(), process);
        Ok(())
    }

    /// Runs a client's command to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn client(&self, client: &ClientId, args: &[&str]) -> anyhow::Result<Finished> {
        Finished::of(self.client_command(client).args(args))
    }

    /// [`client`](Self::client), with a token for `join`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn client_with(
        &self,
        client: &ClientId,
        args: &[&str],
        token: &str,
    ) -> anyhow::Result<Finished> {
        Finished::of(self.client_command(client).args(args).env("COMITY_JOIN_TOKEN", token))
    }

    fn client_command(&self, client: &ClientId) -> Command {
        let mut command = self.binaries.command("comity-client");
        command.arg("--config").arg(self.client_dir(client).join("client.toml"));
        command
    }

    fn client_log(&self, client: &ClientId) -> PathBuf {
        self.client_dir(client).join("client.log")
    }

    fn coordinator_log(&self) -> PathBuf {
        self.dir.join("coordinator.log")
    }

    /// What the coordinator has logged so far.
    #[must_use]
    pub fn coordinator_said(&self) -> String {
        fs::read_to_string(self.coordinator_log()).unwrap_or_default()
    }

    /// Whether a coordinator was started and not killed here; it may have ended by itself.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.coordinator.is_some()
    }

    /// How the serving coordinator has ended; `None` while it serves, or if it was killed here.
    ///
    /// # Errors
    /// Where the operating system does not tell.
    pub fn coordinator_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.coordinator.as_mut().map(|process| process.child.try_wait()).transpose()?.flatten())
    }

    /// How a started client has ended; `None` while it runs, or if it was killed here.
    ///
    /// # Errors
    /// Where the operating system does not tell.
    pub fn client_ended(&mut self, client: &ClientId) -> anyhow::Result<Option<ExitStatus>> {
        let process = self.clients.get_mut(client);
        Ok(process.map(|process| process.child.try_wait()).transpose()?.flatten())
    }

    /// Sends a signal (`"STOP"`, `"CONT"`, `"TERM"`) to a client, or to the coordinator.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn signal(&self, client: Option<&ClientId>, signal: &str) -> anyhow::Result<()> {
        let process = match client {
            None => self.coordinator.as_ref(),
            Some(client) => self.clients.get(client),
        };
        let pid = process.context("it does not run")?.child.id().to_string();
        Finished::of(Command::new("kill").args([&format!("-{signal}"), &pid]))?.success()?;
        Ok(())
    }

    /// What a client has logged so far.
    #[must_use]
    pub fn client_said(&self, client: &ClientId) -> String {
        fs::read_to_string(self.client_log(client)).unwrap_or_default()
    }

    /// Waits until every client has ended by itself, and with success.
    ///
    /// # Errors
    /// With the client's log, if one did not.
    pub fn wait_for_clients(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + timeout;
        for (client, mut process) in std::mem::take(&mut self.clients) {
            let status = process.wait(end.saturating_duration_since(Instant::now()))?;
            ensure!(status.success(), "client {client} ended with {status}:\n{}", process.log());
        }
        Ok(())
    }

    /// Ends a client at once (SIGKILL).
    pub fn kill_client(&mut self, client: &ClientId) {
        self.clients.remove(client);
    }

    /// Ends the coordinator at once (SIGKILL).
    pub fn kill_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Asks the coordinator to end, as Ctrl-C does.
    ///
    /// # Errors
    /// If it ends with a failure, or not at all.
    pub fn stop_coordinator(&mut self) -> anyhow::Result<()> {
        let process = self.coordinator.take().context("the coordinator does not serve")?;
        let status = process.stop()?;
        ensure!(status.success(), "the coordinator ended with {status}");
        Ok(())
    }

    /// Largest resident memory of the coordinator so far, in bytes.
    ///
    /// # Errors
    /// Where the operating system does not tell.
    pub fn coordinator_memory_peak(&self) -> anyhow::Result<u64> {
        let process = self.coordinator.as_ref().context("the coordinator does not serve")?;
        let status = fs::read_to_string(format!("/proc/{}/status", process.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix("kB"))
            .context("no VmHWM")?
            .trim()
            .parse()?;
        Ok(kib * 1024)
    }

    /// The report of `run`.
    ///
    /// # Errors
    /// If the coordinator does not answer.
    pub fn report(&self, run: &str) -> anyhow::Result<RunReport> {
        let shown = self.operator(&["run", "show", run, "--json"])?.success()?;
        Ok(serde_json::from_str(&shown.stdout)?)
    }

    /// Launches the plan at `path` and returns the run's id.
    ///
    /// # Errors
    /// If it is refused.
    pub fn launch(&self, path: &Path) -> anyhow::Result<String> {
        let path = path.to_str().context("the plan's path is not UTF-8")?;
        let started = self.operator(&["run", "start", path, "--json"])?.success()?;
        let run = started.json()?["run"].as_str().context("no run in the answer")?.to_owned();
        Ok(run)
    }
}

/// Copies a folder with all that is in it.
#[cfg(test)]
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
