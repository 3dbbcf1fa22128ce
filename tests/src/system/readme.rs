//! The README's commands, exactly as they stand there, from nothing to a certified model.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comity_federation::Plan;

use super::PATIENCE;
use crate::{Binaries, Finished};

/// The section whose commands are run.
const HEADING: &str = "## From nothing to a trained model";

/// A process of the transcript, ended with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // Nothing to do about a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The commands of the section's shell blocks, one a line.
fn commands(readme: &str) -> Vec<String> {
    let (_, section) = readme.split_once(HEADING).expect("the README has the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut blocks = section.split("```");
    let mut commands = Vec::new();
    while let (Some(_), Some(block)) = (blocks.next(), blocks.next()) {
        let block = block.strip_prefix("sh\n").expect("the section has shell blocks only");
        let block = block.replace("\\\n", " ");
        let lines = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
        commands.extend(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
    }
    commands
}

/// A port that was free a moment ago: a coordinator that invites before it serves has to know its ports.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn shell(command: &str, dir: &Path) -> Command {
    let binaries = Binaries::find().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("bash");
    shell.args(["-c", command]).current_dir(dir);
    shell.env("PATH", format!("{}:{path}", binaries.folder().display()));
    shell
}

/// Runs `command` until it succeeds: a person, too, waits until the program in the next window is up.
fn succeed(command: &str, dir: &Path) -> Finished {
    let end = Instant::now() + PATIENCE;
    loop {
        let finished = Finished::of(&mut shell(command, dir)).unwrap();
        if finished.status.success() {
            return finished;
        }
        assert!(Instant::now() < end, "{command}: {}{}", finished.stdout, finished.stderr);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_readmes_commands_lead_from_nothing_to_a_certified_model() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let commands = commands(&readme);
    let of = |program: &str, verbs: &[&str]| {
        let count = |verb: &&str| {
            commands.iter().filter(|c| c.starts_with(&format!("{program} {verb}"))).count()
        };
        verbs.iter().map(count).sum::<usize>()
    };
    assert_eq!(of("comity-coordinator", &["init", "serve", "invite"]), 2, "two commands to serve");
    assert_eq!(of("comity-client", &["join", "start"]), 2, "two commands to train");

    let plan = Plan::from_toml(include_str!("../../../examples/first/plan.toml")).unwrap();
    assert_eq!(plan.name, "first");
    let dir = tempfile::tempdir().unwrap();
    symlink(root.join("examples"), dir.path().join("examples")).unwrap();
    let (mut served, mut run) = (Vec::new(), "RUN".to_owned());
    for command in &commands {
        let mut command = command.replace("RUN", &run);
        if command.starts_with("comity-coordinator init") {
            // All that differs from the README: other tests may be using its ports.
            let (port, enrolment) = (free_port(), free_port());
            command = command.replacen(
                " init",
                &format!(
                    " init --listen 127.0.0.1:{port} --enrolment-listen 127.0.0.1:{enrolment}"
                ),
                1,
            );
        }
        if let Some(background) = command.strip_suffix('&') {
            let mut daemon = shell(&format!("exec {background}"), dir.path());
            daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            served.push(Served(daemon.spawn().unwrap()));
            continue;
        }
        let finished = succeed(&command, dir.path());
        if command.starts_with("comity-coordinator run start") {
            let said = finished.stdout + &finished.stderr;
            let words = said.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
            run = words.clone().find(|word| word.starts_with("first-")).expect(&said).to_owned();
        }
    }
    assert_eq!(served.len(), 2);
    let page = fs::read_to_string(dir.path().join("papers/certificate.html")).unwrap();
    assert!(page.contains("VN/hanoi-lab") && page.contains(&run), "{page}");
}
