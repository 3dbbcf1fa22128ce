//! Plants each defect of `tests/mutants` in a copy of the project and runs the test that has to
//! notice. Fails if one survives: then a test that looks like a proof is none.
//!
//! ```text
//! sources --copied--> target/mutants/source      the tests pass there, or nothing is shown
//! for each mutant:    plant, run its test        fails: killed; passes: survived;
//!                                                does not compile: no proof, so a failure of this
//! ```
//!
//! The finished dependencies of `target/` are linked, not built again, so that some minutes do.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context as _, bail, ensure};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_tests::mutants::{FOLDER, Mutant};

/// Everything that this program writes.
const OUT: &str = "target/mutants";
/// How long a build with a test may take; a defect may also make a test run forever.
const TIMEOUT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);

/// What became of a named test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// It did not come to an end; the log tells why.
    NotRun,
}

fn main() -> anyhow::Result<ExitCode> {
    ensure!(Path::new(FOLDER).is_dir(), "run this from the project's folder");
    let mutants = Mutant::read_all(Path::new("."))?;
    let copy = Copy::make()?;

    let started = Instant::now();
    let tests: BTreeSet<(&str, &str)> =
        mutants.iter().map(|mutant| (mutant.target.as_str(), mutant.test.as_str())).collect();
    eprintln!("building the sources as they are, and running {} tests …", tests.len());
    let outcomes = copy.run("as-they-are", &tests)?;
    for ((target, test), outcome) in tests.iter().zip(outcomes) {
        ensure!(
            outcome == Outcome::Passed,
            "{test} of {target} does not pass without any mutant; see {OUT}/as-they-are.log"
        );
    }
    eprintln!("all pass, after {:.0} s", started.elapsed().as_secs_f64());

    let mut table = Table::new();
    let style = UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none());
    table.load_style(style).set_header(["mutant", "file", "test", "seconds", "result"]);
    let mut n_not_killed = 0;
    for mutant in &mutants {
        let started = Instant::now();
        copy.write(&mutant.file, &mutant.planted(Path::new("."))?)?;
        let tests = BTreeSet::from([(mutant.target.as_str(), mutant.test.as_str())]);
        let outcome = copy.run(&mutant.name, &tests)?[0];
        copy.write(&mutant.file, &fs::read_to_string(&mutant.file)?)?;
        let result = match outcome {
            Outcome::Failed => "killed",
            Outcome::Passed => "SURVIVED",
            Outcome::NotRun => "NOT RUN",
        };
        let seconds = format!("{:.0}", started.elapsed().as_secs_f64());
        eprintln!("{}: {result} after {seconds} s", mutant.name);
        if outcome != Outcome::Failed {
            n_not_killed += 1;
            eprintln!("  see {OUT}/{}.log", mutant.name);
        }
        table.add_row([&mutant.name, &mutant.file, &mutant.test, &seconds, result]);
    }
    println!("{table}");
    println!("{} of {} mutants killed", mutants.len() - n_not_killed, mutants.len());
    Ok(if n_not_killed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The project's sources a second time, with a target folder of their own.
struct Copy {
    source: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn make() -> anyhow::Result<Self> {
        let out = env::current_dir()?.join(OUT);
        let copy = Self { source: out.join("source"), target: out.join("target") };
        let kept = copy_sources(Path::new("."), &copy.source)?;
        remove_others(&copy.source, &kept)?;
        let finished = env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        link_dependencies(&finished.join("debug"), &copy.target.join("debug"))
            .context("the finished dependencies cannot be linked")?;
        Ok(copy)
    }

    /// Writes a source; its time tells cargo that it has changed.
    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.source.join(file), text).with_context(|| format!("writing {file}"))
    }

    /// Builds and runs `tests`, each a target and a name, and tells what became of each.
    fn run(&self, log: &str, tests: &BTreeSet<(&str, &str)>) -> anyhow::Result<Vec<Outcome>> {
        let path = Path::new(OUT).join(format!("{log}.log"));
        let file = File::create(&path)?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // The whole workspace, so that its features are those of the linked dependencies.
        command.args(["test", "--offline", "--locked", "--workspace", "--no-fail-fast"]);
        for target in tests.iter().map(|(target, _)| *target).collect::<BTreeSet<_>>() {
            command.args(["--test", target]);
        }
        command.args(["--", "--exact"]).args(tests.iter().map(|(_, test)| *test));
        command.current_dir(&self.source).env("CARGO_TARGET_DIR", &self.target);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut child = command.spawn().context("cargo cannot be started")?;
        let started = Instant::now();
        while child.try_wait()?.is_none() {
            if started.elapsed() > TIMEOUT {
                child.kill()?;
                child.wait()?;
                bail!("{log} did not end within {TIMEOUT:?}; see {}", path.display());
            }
            thread::sleep(POLL);
        }
        let lines: Vec<String> = BufReader::new(File::open(&path)?)
            .lines()
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let outcome = |test: &str| {
            let said =
                |word: &str| lines.iter().any(|line| *line == format!("test {test} ... {word}"));
            match (said("ok"), said("FAILED")) {
                (true, false) => Outcome::Passed,
                (false, true) => Outcome::Failed,
                _ => Outcome::NotRun,
            }
        };
        Ok(tests.iter().map(|(_, test)| outcome(test)).collect())
    }
}

/// Copies what is a source and differs, so that cargo builds nothing twice; returns all sources.
fn copy_sources(from: &Path, to: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    fs::create_dir_all(to)?;
    let mut kept = BTreeSet::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if name == "target" || (hidden && name != ".cargo") {
            continue;
        }
        let (path, copy) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            kept.extend(copy_sources(&path, &copy)?);
            kept.insert(copy);
        } else {
            let bytes = fs::read(&path)?;
            if fs::read(&copy).ok().as_ref() != Some(&bytes) {
                fs::write(&copy, bytes)?;
            }
            kept.insert(copy);
        }
    }
    Ok(kept)
}

/// Removes from the copy what is no source any more.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match (kept.contains(&path), path.is_dir()) {
            (true, true) => remove_others(&path, kept)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(&path)?,
            (false, false) => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

/// Gives the copy the finished dependencies: libraries and outputs of build scripts as hard links,
/// which nothing writes to once they are finished, and cargo's notes about them as copies. What is
/// the project's own is left out and built there.
fn link_dependencies(from: &Path, to: &Path) -> anyhow::Result<()> {
    ensure!(
        from.join("deps").is_dir(),
        "{} does not exist; build first (cargo build --workspace)",
        from.display()
    );
    for entry in fs::read_dir(from.join("deps"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("lib") && !name.starts_with("libcomity") {
            link(&path, &to.join("deps").join(&*name))?;
        }
    }
    for folder in ["build", ".fingerprint"] {
        for entry in fs::read_dir(from.join(folder))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("comity") {
                link_tree(&path, &to.join(folder).join(&*name), folder == ".fingerprint")?;
            }
        }
    }
    Ok(())
}

fn link_tree(from: &Path, to: &Path, copies: bool) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let copy = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            link_tree(&path, &copy, copies)?;
        } else if copies {
            copy_with_time(&path, &copy)?;
        } else {
            link(&path, &copy)?;
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        return Ok(());
    }
    fs::create_dir_all(to.parent().expect("a file lies in a folder"))?;
    if fs::hard_link(from, to).is_err() {
        copy_with_time(from, to)?;
    }
    Ok(())
}

/// Cargo goes by the times of files.
fn copy_with_time(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        return Ok(());
    }
    fs::create_dir_all(to.parent().expect("a file lies in a folder"))?;
    fs::copy(from, to)?;
    let modified = fs::metadata(from)?.modified()?;
    File::options().write(true).open(to)?.set_times(FileTimes::new().set_modified(modified))?;
    Ok(())
}
