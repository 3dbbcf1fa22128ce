//! Every state file, damaged in every way: what opens it refuses by name, or heals; nothing is silent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use comity_certs::{Authority, Clock, check_own};
use comity_client::{Node, Outside};
use comity_coordinator::{Coordinator, Home};
use comity_federation::{ClientId, ModelDigest, RunReport, RunStatus};
use comity_journal::BlobStore;
use tempfile::TempDir;
use time::OffsetDateTime;

use super::{PATIENCE, Site, short_rounds};
use crate::deployment::copy_folder;
use crate::draws::Draws;
use crate::{Binaries, Finished};

/// Names the number of cases; `make chaos` plays more of them.
const N_CASES: &str = "COMITY_CASES";
const N_CASES_DEFAULT: usize = 40;

const PAGE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    Flip,
    Truncate,
    ZeroPage,
    Stale,
    Empty,
}

const DAMAGES: [Damage; 5] =
    [Damage::Flip, Damage::Truncate, Damage::ZeroPage, Damage::Stale, Damage::Empty];

impl Damage {
    /// The bytes of a file after it; `None` if they would be the same.
    fn of(self, bytes: &[u8], earlier: Option<&[u8]>, draws: &mut Draws) -> Option<Vec<u8>> {
        let last = (bytes.len() as u64).checked_sub(1)?;
        let mut damaged = bytes.to_vec();
        match self {
            Self::Flip => damaged[draws.between(0, last) as usize] ^= 1 << draws.between(0, 7),
            Self::Truncate => damaged.truncate(draws.between(0, last) as usize),
            Self::ZeroPage => {
                let page = draws.between(0, last) as usize / PAGE * PAGE;
                let end = (page + PAGE).min(damaged.len());
                damaged[page..end].fill(0);
            }
            Self::Stale => damaged = earlier?.to_vec(),
            Self::Empty => damaged.clear(),
        }
        (damaged != bytes).then_some(damaged)
    }
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// Refused, or reported, with the file's name.
    Named,
    /// Rebuilt, made again, or removed because nobody needs it: everything is as before.
    Healed,
    /// The bytes that were damaged mean nothing: everything is as before.
    Unharmed,
}

/// The folders of a coordinator and a client, killed in the middle of a round.
struct Scene {
    site: Site,
    client: ClientId,
    run: String,
}

impl Scene {
    fn new() -> Self {
        let mut site = Site::new(&short_rounds(30));
        let clients = site.add_clients(None, true);
        site.keep_port();
        site.start_clients(&clients);
        let run = site.launch();
        let mut scene = Self { site, client: clients[0].clone(), run };
        scene.keep("earlier", 3, &clients);
        scene.site.deployment.serve().unwrap();
        scene.site.start_clients(&clients);
        // Two updates of the open round are there, the third is not.
        scene.site.wait(&scene.run, |report| report.round >= 6);
        scene.site.deployment.kill_client(&clients[0]);
        scene.site.wait(&scene.run, |report| {
            report.history.last().is_some_and(|round| round.contributions.len() >= 2)
        });
        scene.keep("now", 6, &clients);
        scene
    }

    /// Waits for `round`, kills everybody and copies their folders.
    fn keep(&mut self, name: &str, round: u32, clients: &[ClientId]) {
        self.site.wait(&self.run, |report| report.round >= round);
        clients.iter().for_each(|client| self.site.deployment.kill_client(client));
        self.site.deployment.kill_coordinator();
        // After a kill the index may not have seen the last records, and their loss would look like an append that
        // the kill cut off; a start brings it up to date.
        drop(
            Coordinator::open(&Home::new(&self.site.deployment.coordinator_dir()), Clock::system())
                .unwrap(),
        );
        let config = self.site.deployment.client_dir(&self.client).join("client.toml");
        drop(Node::open(&config, Outside::deployed()).unwrap());
        copy_folder(&self.site.deployment.coordinator_dir(), &self.dir(name, "coordinator"));
        copy_folder(&self.site.deployment.client_dir(&self.client), &self.dir(name, "client"));
    }

    fn dir(&self, name: &str, side: &str) -> PathBuf {
        self.site.path(name).join(side)
    }
}

/// The files below `dir`, relative to it, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn named(text: &str, file: &Path) -> bool {
    let name = file.file_name().unwrap().to_str().unwrap();
    // A journal and an index are named as such too; sled's files are its own affair.
    let kind = file.iter().next().unwrap().to_str().unwrap();
    text.contains(name)
        || (kind == "index" && text.contains("index"))
        || (kind == "journal.log" && text.contains("the journal ends at record"))
}

/// A part of a transfer has no digest yet: what comes of it is compared with one, and sent again if it is another.
fn is_a_part(file: &Path) -> bool {
    file.starts_with("blobs/staged") || file.starts_with("blobs/unfinished")
}

/// What opening a coordinator says to the damage of `file` in `dir`.
fn judge_coordinator(dir: &Path, file: &Path, reference: &[RunReport]) -> Result<Verdict, String> {
    let top = file.iter().next().unwrap().to_str().unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let certs = dir.join("certs");
    let read = |name: &str| fs::read_to_string(certs.join(name)).map_err(|e| e.to_string());
    let now = OffsetDateTime::now_utc();
    if top == "certs" && !name.starts_with("coordinator") && name != "root.pem" {
        // Read by the operator's commands; each says itself what is wrong.
        if name.starts_with("operator") {
            let checked = read("operator.pem").and_then(|certificate| {
                check_own(&certificate, &read("operator.key")?, &read("root.pem")?, now)
                    .map_err(|e| e.to_string())
            });
            return Ok(if checked.is_ok() { Verdict::Unharmed } else { Verdict::Named });
        }
        let issued = Authority::open(&certs).and_then(|authority| {
            let client = comity_certs::Role::Client("KR/new".parse().expect("a client"));
            authority.issue(&client, 1, now).map(|issued| issued.write(certs.join("new")))
        });
        let Ok(written) = issued else { return Ok(Verdict::Named) };
        written.map_err(|e| e.to_string())?;
        let new = |name: &str| fs::read_to_string(certs.join("new").join(name)).unwrap();
        let fits = check_own(&new("certificate.pem"), &new("key.pem"), &read("root.pem")?, now);
        return fits.map(|_| Verdict::Unharmed).map_err(|e| format!("issued all the same: {e}"));
    }
    let opened = match Coordinator::open(&Home::new(dir), Clock::system()) {
        Ok(opened) => opened,
        Err(error) => {
            let error = format!("{error:#}");
            return if named(&error, file) {
                Ok(Verdict::Named)
            } else {
                Err(format!("refused as: {error}"))
            };
        }
    };
    if top == "blobs" && is_a_part(file) {
        return Ok(Verdict::Healed);
    }
    if top == "blobs" {
        let hex: String = file.iter().skip(1).map(|part| part.to_str().unwrap()).collect();
        let digest: ModelDigest = hex.parse().unwrap();
        if opened.damage().iter().any(|damage| damage.contains(&hex[2..])) {
            return Ok(Verdict::Named);
        }
        let store = BlobStore::existing(dir.join("blobs"));
        return match store.reader_of_whole(&digest.0) {
            Ok(_) => Ok(Verdict::Healed),
            // What folds it, or hands it out, reads it so.
            Err(error) if error.to_string().contains(&hex[2..]) => Ok(Verdict::Named),
            Err(error) => Err(error.to_string()),
        };
    }
    if !opened.damage().is_empty() {
        return Err(format!("{:?}", opened.damage()));
    }
    let reports = opened.reports().map_err(|e| format!("{e:#}"))?;
    if reports != reference {
        return Err("it opened with other runs".to_owned());
    }
    match top {
        "journal.log" => Err("a damaged journal was opened".to_owned()),
        "index" => Ok(Verdict::Healed),
        _ => Ok(Verdict::Unharmed),
    }
}

/// What opening a node says to the damage of `file` in `dir`.
fn judge_client(dir: &Path, file: &Path, reference: &str) -> Result<Verdict, String> {
    let in_state = file.strip_prefix("state").ok();
    let config = dir.join("client.toml");
    let opened = match Node::open(&config, Outside::deployed()) {
        Ok(opened) => opened,
        Err(error) => {
            let error = format!("{error:#}");
            let named = named(&error, in_state.unwrap_or(file));
            return if named { Ok(Verdict::Named) } else { Err(format!("refused as: {error}")) };
        }
    };
    drop(opened);
    if in_state.is_some_and(is_a_part) {
        return Ok(Verdict::Healed);
    }
    if let Some(blob) = in_state.and_then(|file| file.strip_prefix("blobs").ok()) {
        let hex: String = blob.iter().map(|part| part.to_str().unwrap()).collect();
        let digest: ModelDigest = hex.parse().unwrap();
        let store = BlobStore::existing(dir.join("state/blobs"));
        // A model that is not whole is fetched again, an update that is not whole is not sent.
        return match store.reader_of_whole(&digest.0) {
            Ok(_) => Err("a damaged blob is taken for whole".to_owned()),
            Err(error) if error.to_string().contains(&hex[2..]) => Ok(Verdict::Named),
            Err(error) => Err(error.to_string()),
        };
    }
    let ledger = ledger(&config);
    if ledger != reference {
        return Err(format!("another ledger: {ledger}"));
    }
    match in_state {
        Some(file) if file.starts_with("journal.log") => {
            Err("a damaged journal was opened".to_owned())
        }
        Some(file) if file.starts_with("index") => Ok(Verdict::Healed),
        _ => Ok(Verdict::Unharmed),
    }
}

fn ledger(config: &Path) -> String {
    let mut command = Binaries::find().unwrap().command("comity-client");
    let shown = command.arg("--config").arg(config).args(["ledger", "show", "--json"]);
    Finished::of(shown).unwrap().success().unwrap().stdout
}

// BAD_INPUTS 94
#[test]
fn every_state_file_damaged_in_every_way_is_named_or_healed() {
    let n_cases = std::env::var(N_CASES).map_or(N_CASES_DEFAULT, |n| n.parse().unwrap());
    let scene = Scene::new();
    let open = |dir: &Path| {
        let copied = tempfile::tempdir().unwrap();
        copy_folder(dir, copied.path());
        copied
    };
    let intact: TempDir = open(&scene.dir("now", "coordinator"));
    let reference =
        Coordinator::open(&Home::new(intact.path()), Clock::system()).unwrap().reports().unwrap();
    assert_eq!(reference.len(), 1);
    let intact = open(&scene.dir("now", "client"));
    drop(Node::open(&intact.path().join("client.toml"), Outside::deployed()).unwrap());
    let ledger = ledger(&intact.path().join("client.toml"));

    let mut draws = Draws::new(n_cases as u64);
    let mut counts: BTreeMap<(&str, Damage, Verdict), u32> = BTreeMap::new();
    let mut silent = Vec::new();
    let mut n_played = 0;
    let mut targets: Vec<(&str, PathBuf)> = ["coordinator", "client"]
        .into_iter()
        .flat_map(|side| files(&scene.dir("now", side)).into_iter().map(move |file| (side, file)))
        // Logs and the address of a running coordinator are written anew.
        .filter(|(_, file)| {
            !file.ends_with("address")
                && file.extension().is_none_or(|e| e != "log" || file.ends_with("journal.log"))
        })
        .collect();
    targets.sort();
    assert!(targets.len() >= 15, "{targets:?}");
    let mut turn = 0;
    while n_played < n_cases {
        assert!(turn < 50 * n_cases, "too few cases can be drawn");
        let (side, file) = &targets[turn % targets.len()];
        let damage = DAMAGES[(turn / targets.len() + turn) % DAMAGES.len()];
        turn += 1;
        let is_config = file.extension().is_some_and(|ending| ending == "toml");
        if is_config && matches!(damage, Damage::Flip | Damage::Truncate) {
            // A text for people has no seal: what is left may be another valid configuration.
            continue;
        }
        let bytes = fs::read(scene.dir("now", side).join(file)).unwrap();
        let earlier = fs::read(scene.dir("earlier", side).join(file)).ok();
        let Some(damaged) = damage.of(&bytes, earlier.as_deref(), &mut draws) else { continue };
        n_played += 1;
        let case = open(&scene.dir("now", side));
        fs::write(case.path().join(file), damaged).unwrap();
        let verdict = match *side {
            "coordinator" => judge_coordinator(case.path(), file, &reference),
            _ => judge_client(case.path(), file, &ledger),
        };
        match verdict {
            Ok(verdict) => *counts.entry((*side, damage, verdict)).or_default() += 1,
            Err(why) => silent.push(format!("{side} {} {damage:?}: {why}", file.display())),
        }
    }
    for ((side, damage, verdict), n) in &counts {
        println!("{n:>4} {side} {damage:?}: {verdict:?}");
    }
    println!("{n_played} cases over {} files, {} silent", targets.len(), silent.len());
    assert!(silent.is_empty(), "{silent:#?}");
}

/// The file of the one blob in `dir` that is no update of `report`, or of one that is.
fn blob(dir: &Path, report: &RunReport, is_update: bool) -> PathBuf {
    let updates: Vec<[u8; 32]> =
        report.history.iter().flat_map(|r| &r.contributions).map(|c| c.update.0).collect();
    let listed = BlobStore::existing(dir).list().unwrap();
    let (digest, _) = listed
        .into_iter()
        .find(|(digest, _)| updates.contains(digest) == is_update)
        .expect("there is such a blob");
    let hex = ModelDigest(digest).to_string();
    dir.join(&hex[..2]).join(&hex[2..])
}

fn wait_for_the_end_of(site: &mut Site, client: Option<&ClientId>) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let ended = match client {
            Some(client) => site.deployment.client_ended(client).unwrap(),
            None => site.deployment.coordinator_ended().unwrap(),
        };
        if ended.is_some() {
            return;
        }
        assert!(std::time::Instant::now() < end, "the failpoint was not reached");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

// BAD_INPUTS 94
#[test]
fn a_damaged_model_at_a_client_is_fetched_again_and_a_damaged_update_is_withdrawn() {
    let plan = short_rounds(5)
        .replace("min_clients = 3", "min_clients = 2")
        .replace("min_countries = 3", "min_countries = 2");
    let mut site = Site::new(&plan);
    let clients = site.add_clients(None, true);
    site.start_clients(&clients[1..]);
    let dir = site.deployment.client_dir(&clients[0]).join("state/blobs");
    site.deployment
        .start_client_failing(&clients[0], 1, "client::after_fetch=1*off->return(abort)")
        .unwrap();
    let run = site.launch();
    wait_for_the_end_of(&mut site, Some(&clients[0]));
    let model = blob(&dir, &site.deployment.report(&run).unwrap(), false);
    fs::write(&model, b"another model").unwrap();
    site.deployment
        .start_client_failing(&clients[0], 1, "client::before_submit=1*off->return(abort)")
        .unwrap();
    wait_for_the_end_of(&mut site, Some(&clients[0]));
    let report = site.deployment.report(&run).unwrap();
    assert_eq!(report.round, 3);
    assert_eq!(report.history[1].contributions.len(), 3, "{report:#?}");
    // The update of round 3 is the one that is not on record yet; the others are left as they are.
    let on_record: Vec<PathBuf> = report
        .history
        .iter()
        .flat_map(|round| &round.contributions)
        .map(|c| c.update.to_string())
        .map(|hex| dir.join(&hex[..2]).join(&hex[2..]))
        .collect();
    let released = site.deployment.client(&clients[0], &["ledger", "show", "--json"]).unwrap();
    let released = released.success().unwrap().json().unwrap();
    let last = released["entries"].as_array().unwrap().iter().rfind(|e| e["kind"] == "committed");
    let hex = last.unwrap()["release"].as_str().unwrap().to_owned();
    let update = dir.join(&hex[..2]).join(&hex[2..]);
    assert!(update.exists() && !on_record.contains(&update));
    fs::write(&update, b"another update").unwrap();
    site.deployment.start_client(&clients[0], 1).unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    let missing = &report.history[2].missing;
    assert!(missing.len() == 1 && missing[0].0 == clients[0], "{missing:?}");
    assert!(missing[0].1.contains("lost on this institution's disk"), "{missing:?}");
    for round in [0, 1, 3, 4] {
        assert_eq!(report.history[round].contributions.len(), 3, "{report:#?}");
    }
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}

// BAD_INPUTS 94
#[test]
fn a_damaged_update_at_the_coordinator_is_named_and_waited_for() {
    let mut site = Site::new(&short_rounds(4));
    let clients = site.add_clients(None, true);
    site.keep_port();
    site.deployment.serve_failing("coordinator::before_fold_stored=1*off->return(abort)").unwrap();
    site.start_clients(&clients);
    let run = site.launch();
    wait_for_the_end_of(&mut site, None);
    // Its own index tells which of the blobs are updates.
    let dir = site.deployment.coordinator_dir();
    let reports = Coordinator::open(&Home::new(&dir), Clock::system()).unwrap().reports().unwrap();
    let update = blob(&dir.join("blobs"), &reports[0], true);
    let whole = fs::read(&update).unwrap();
    let mut altered = whole.clone();
    altered[5] ^= 4;
    fs::write(&update, &altered).unwrap();
    site.deployment.serve().unwrap();
    let name = update.file_name().unwrap().to_str().unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    while !site.deployment.coordinator_said().contains("could not be aggregated yet") {
        assert!(std::time::Instant::now() < end, "{}", site.deployment.coordinator_said());
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    assert!(site.deployment.coordinator_said().contains(name));
    assert_eq!(site.deployment.report(&run).unwrap().status, RunStatus::Aggregating);
    fs::write(&update, whole).unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
}
