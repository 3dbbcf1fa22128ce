//! What the steward decides about runs: handed over as files, because the node holds its journal alone.
//!
//! `comity-client run approve|refuse` writes `state/decisions/RUN.json`; the node looks there at least once a
//! second, records the decision in its journal and removes the file. A decision is about the plan that was
//! shown: about any other it does not count.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use comity_federation::{PlanDigest, RunId, Time};
use serde::{Deserialize, Serialize};

/// Longest file that is looked at, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Longest reason, in bytes: as long as what a run keeps of one.
const REASON_BYTES_MAX: usize = 400;

/// A decision as it is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Handed {
    /// About which run.
    pub(crate) run: RunId,
    /// Under which plan it was shown.
    pub(crate) plan: PlanDigest,
    /// Whether the run may train here.
    pub(crate) approved: bool,
    /// Why; a refusal has one, and it reaches the operator.
    pub(crate) reason: String,
    /// When it was decided.
    pub(crate) at: Time,
}

/// A decision as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decision {
    /// Under which plan the run was shown.
    pub(crate) plan: PlanDigest,
    /// Whether the run may train here.
    pub(crate) approved: bool,
    /// Why.
    pub(crate) reason: String,
    /// The user of this machine who handed it over, as the owner of the file.
    pub(crate) by: String,
    /// When it was decided.
    pub(crate) at: Time,
}

impl Decision {
    /// The decision in a few words, for lists.
    pub(crate) fn words(&self) -> String {
        let what = if self.approved { "approved" } else { "refused" };
        match self.reason.as_str() {
            "" => format!("{what} by {}", self.by),
            reason => format!("{what} by {}: {reason}", self.by),
        }
    }
}

/// The folder of decisions that wait for the node.
pub(crate) fn folder(state: &Path) -> PathBuf {
    state.join("decisions")
}

/// Where a decision about `run` is handed over.
pub(crate) fn path(state: &Path, run: &RunId) -> PathBuf {
    folder(state).join(format!("{run}.json"))
}

impl Handed {
    /// Hands the decision to the node whose state lies in `state`; it finds a whole file or none.
    pub(crate) fn hand_over(&self, state: &Path) -> anyhow::Result<()> {
        ensure!(
            self.reason.len() <= REASON_BYTES_MAX,
            "the reason has more than {REASON_BYTES_MAX} bytes; write a shorter one"
        );
        let folder = folder(state);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("folder {} cannot be made", folder.display()))?;
        Ok(comity_certs::replace(&path(state, &self.run), &serde_json::to_string(self)?)?)
    }
}

/// A decision and the user whose file it is; or why the file is no decision.
pub(crate) type Waiting = Result<(Handed, String), String>;

/// Takes the decisions that lie in `state`, with their files; the caller removes each when it has been dealt
/// with.
pub(crate) fn waiting(state: &Path) -> Vec<(PathBuf, Waiting)> {
    // There is no folder until the first decision.
    let Ok(entries) = std::fs::read_dir(folder(state)) else { return Vec::new() };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let read = read(&path).map_err(|error| format!("{error:#}"));
            (path, read)
        })
        .collect()
}

fn read(file: &Path) -> anyhow::Result<(Handed, String)> {
    let metadata = std::fs::symlink_metadata(file)?;
    ensure!(metadata.is_file() && metadata.len() <= FILE_BYTES_MAX, "it is no decision");
    let handed: Handed = serde_json::from_slice(&std::fs::read(file)?)?;
    let name = format!("{}.json", handed.run);
    ensure!(
        file.file_name().is_some_and(|found| found == name.as_str()),
        "it is about another run"
    );
    ensure!(handed.reason.len() <= REASON_BYTES_MAX, "its reason is too long");
    ensure!(handed.approved || !handed.reason.trim().is_empty(), "a refusal needs a reason");
    Ok((handed, user(metadata.uid())))
}

/// The name of a user of this machine, or the number where it has none.
fn user(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("user {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed(approved: bool, reason: &str) -> Handed {
        Handed {
            run: "sample-1".parse().unwrap(),
            plan: PlanDigest([1; 32]),
            approved,
            reason: reason.to_owned(),
            at: Time(5),
        }
    }

    #[test]
    fn a_decision_is_handed_over_whole_with_its_owner() {
        let state = tempfile::tempdir().unwrap();
        assert!(waiting(state.path()).is_empty());
        let decision = handed(false, "no agreement with the ministry");
        decision.hand_over(state.path()).unwrap();
        let found = waiting(state.path());
        let [(file, Ok((read, by)))] = &found[..] else { panic!("{found:?}") };
        assert_eq!((read, file), (&decision, &path(state.path(), &decision.run)));
        assert!(!by.is_empty());
    }

    #[test]
    fn what_is_no_decision_says_why_and_decides_nothing() {
        let state = tempfile::tempdir().unwrap();
        assert!(handed(true, &"a".repeat(500)).hand_over(state.path()).is_err());
        handed(true, "").hand_over(state.path()).unwrap();
        let file = path(state.path(), &"sample-1".parse().unwrap());
        let good = std::fs::read_to_string(&file).unwrap();
        for bad in [
            String::new(),
            good.replace("true", "maybe"),
            good.replace("sample-1", "sample-2"),
            good.replace("\"approved\":true", "\"approved\":false"),
            good.replace("\"at\":5", "\"at\":5,\"and\":6"),
            "a".repeat(20_000),
        ] {
            std::fs::write(&file, &bad).unwrap();
            let found = waiting(state.path());
            assert!(matches!(found[..], [(_, Err(_))]), "{bad}");
        }
    }
}
