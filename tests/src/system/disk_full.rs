//! A disk that is really full: a small file system in memory, filled to the brim. Where none may be mounted
//! (only root may), these tests say so, and `io_faults` shows the same with failpoints.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use comity_federation::{RunReport, RunStatus};

use super::{PATIENCE, Site, short_rounds};
use crate::Finished;

const MIB: u64 = 1 << 20;
/// Files and folders that a small disk holds: a federation's state has some hundred.
const N_INODES: u64 = 2_000;

/// A mounted file system of a few MiB; unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None`, told loudly, where this process may not mount.
    fn mount(path: &Path, mib: u64) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={mib}m,nr_inodes={N_INODES},mode=755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "comity-test"]).arg(path);
        let mounted = Finished::of(&mut mount).and_then(Finished::success);
        if let Err(error) = mounted {
            eprintln!(
                "NOT TESTED: no file system can be mounted here, so no disk was really full ({error:#}); run \
                 as root for this test. Failpoints stand in for it in io_faults."
            );
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    /// Fills the disk until `n_bytes` are left.
    fn fill(&self, n_bytes: u64) {
        let mut ballast = fs::File::create(self.path.join("ballast")).unwrap();
        let block = vec![0; 4096];
        while ballast.write_all(&block).is_ok() {}
        let full = ballast.metadata().unwrap().len();
        ballast.set_len(full.saturating_sub(n_bytes)).unwrap();
    }

    /// Uses up the inodes with empty files.
    fn fill_with_files(&self) {
        let dir = self.path.join("ballast");
        fs::create_dir(&dir).unwrap();
        let n = (0..N_INODES).take_while(|i| fs::File::create_new(dir.join(i.to_string())).is_ok());
        assert!((1..N_INODES).contains(&(n.count() as u64)), "no inode is left");
    }

    fn make_room(&self) {
        let ballast = self.path.join("ballast");
        if ballast.is_dir() {
            fs::remove_dir_all(ballast).unwrap();
        } else {
            fs::remove_file(ballast).unwrap();
        }
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(&self.path);
        Finished::of(&mut mount).unwrap().success().unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whatever still has a file open there is being ended by its own drop.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Updates of about half a MiB.
fn plan() -> String {
    short_rounds(8).replace(
        "{ type = \"linear\", out = 2 }]",
        "{ type = \"linear\", out = 2000 }, { type = \"tanh\" }, { type = \"linear\", out = 2 }]",
    )
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Waits for the end of `run`; a coordinator that stopped for want of room says so, and is started again as a
/// service manager does.
fn end_with_restarts(site: &mut Site, run: &str) -> RunReport {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = site.deployment.coordinator_ended().unwrap() {
            let said = site.deployment.coordinator_said();
            assert_eq!(status.code(), Some(1), "{said}");
            assert!(said.contains("make room"), "{said}");
            site.deployment.serve().unwrap();
        }
        match site.deployment.report(run) {
            Ok(report) if report.status.is_terminal() => return report,
            _ => assert!(Instant::now() < end, "no end of {run}"),
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

// BAD_INPUTS 85
#[test]
fn a_full_disk_at_the_coordinator_refuses_updates_until_there_is_room() {
    let mut disk = None;
    let mut site = Site::prepared(&plan(), |root| {
        disk = SmallDisk::mount(&root.join("run/coordinator"), 24);
    });
    let Some(disk) = disk else { return };
    let clients = site.add_clients(None, true);
    site.keep_port();
    // Room for the journal, and not for an update.
    let run = site.launch();
    disk.fill(MIB / 4);
    site.start_clients(&clients);
    wait_until("a refusal", || {
        let heard = clients.iter().map(|client| site.deployment.client_said(client));
        heard.collect::<String>().contains("the coordinator's disk is full")
    });
    // It serves all the same, unless the last bytes went to an update and a record found none.
    if let Ok(report) = site.deployment.report(&run) {
        assert_eq!(report.status, RunStatus::Training);
    }
    disk.make_room();
    let report = end_with_restarts(&mut site, &run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert!(report.history.iter().all(|round| round.contributions.len() == 3));
    assert_eq!(report.model.to_string(), site.simulated_model());
    let said = site.deployment.coordinator_said();
    assert!(!said.contains("panicked"), "{said}");
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    drop(site);
}

// BAD_INPUTS 87
#[test]
fn a_coordinator_without_an_inode_refuses_updates_until_there_is_one() {
    let mut disk = None;
    let mut site = Site::prepared(&plan(), |root| {
        disk = SmallDisk::mount(&root.join("run/coordinator"), 24);
    });
    let Some(disk) = disk else { return };
    let clients = site.add_clients(None, true);
    site.keep_port();
    let run = site.launch();
    disk.fill_with_files();
    site.start_clients(&clients);
    wait_until("a refusal", || {
        let heard = clients.iter().map(|client| site.deployment.client_said(client));
        heard.collect::<String>().contains("the coordinator's disk is full")
    });
    disk.make_room();
    let report = end_with_restarts(&mut site, &run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    drop(site);
}

// BAD_INPUTS 85
#[test]
fn a_coordinator_without_a_byte_of_room_stops_cleanly_and_resumes() {
    let mut disk = None;
    let mut site = Site::prepared(&plan(), |root| {
        disk = SmallDisk::mount(&root.join("run/coordinator"), 24);
    });
    let Some(disk) = disk else { return };
    let clients = site.add_clients(None, true);
    site.keep_port();
    site.start_clients(&clients);
    let run = site.launch();
    site.wait(&run, |report| report.round >= 2);
    disk.fill(0);
    // It may live on refusing updates, or have stopped at a record that found no room; then it says what to do.
    wait_until("an answer", || {
        site.deployment.coordinator_ended().unwrap().is_some()
            || site.deployment.coordinator_said().contains("the disk is full")
            || site.deployment.coordinator_said().contains("could not be aggregated yet")
    });
    if let Some(status) = site.deployment.coordinator_ended().unwrap() {
        let said = site.deployment.coordinator_said();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("make room"), "{said}");
        // Nor does it start, for the same reason.
        if let Err(refused) = site.deployment.serve() {
            assert!(refused.to_string().contains("make room"), "{refused}");
        }
    }
    assert!(!site.deployment.coordinator_said().contains("panicked"));
    disk.make_room();
    site.deployment.serve().unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    drop(site);
}

// BAD_INPUTS 85, 86
#[test]
fn a_client_whose_disk_is_full_or_read_only_says_so_and_comes_back() {
    let mut disk = None;
    let mut site = Site::prepared(&plan(), |root| {
        disk = SmallDisk::mount(&root.join("run/KR-a/state"), 24);
    });
    let Some(disk) = disk else { return };
    let clients = site.add_clients(None, true);
    site.start_clients(&clients);
    let run = site.launch();
    site.wait(&run, |report| report.round >= 2);
    disk.fill(MIB / 8);
    wait_until("a word of it", || site.deployment.client_said(&clients[0]).contains("make room"));
    assert!(!site.deployment.client_said(&clients[0]).contains("panicked"));
    // The others wait, and the coordinator serves.
    assert_eq!(site.deployment.report(&run).unwrap().status, RunStatus::Training);
    disk.make_room();
    site.deployment.kill_client(&clients[0]);
    // Read-only, it does not even start, and says why.
    disk.remount("ro");
    let refused = site.deployment.client(&clients[0], &["start"]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("read-only"), "{}", refused.stderr);
    disk.remount("rw");
    site.deployment.start_client(&clients[0], 1).unwrap();
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    drop(site);
}

// BAD_INPUTS 86
#[test]
fn a_coordinator_on_a_read_only_disk_says_so() {
    let mut disk = None;
    let mut site = Site::prepared(&plan(), |root| {
        disk = SmallDisk::mount(&root.join("run/coordinator"), 24);
    });
    let Some(disk) = disk else { return };
    site.deployment.kill_coordinator();
    disk.remount("ro");
    let refused = site.deployment.operator(&["serve"]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("read-only"), "{}", refused.stderr);
    disk.remount("rw");
    site.deployment.serve().unwrap();
    site.deployment.operator(&["run", "list"]).unwrap().success().unwrap();
    drop(site);
}
