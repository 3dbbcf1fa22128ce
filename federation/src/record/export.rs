//! The file of a run's papers that one side gives to another, and what two of them say of one another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Breach, PaperError, RecordBook, RoundRecord, SignedReceipt, SignedRecord, Terms};
use super::{read, write};
use crate::{ClientId, Plan, PlanDigest, RunId};

const FORMAT: &str = "comity records v1";

/// The papers of one run, as one side holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    format: String,
    /// Whose copy it is: a client, or `coordinator`.
    pub by: String,
    /// Name of the federation.
    pub federation: String,
    /// Which run.
    pub run: RunId,
    /// The run's plan.
    pub plan: Plan,
    /// Its records, oldest first.
    pub records: Vec<SignedRecord>,
    /// The receipts that this side holds.
    pub receipts: Vec<SignedReceipt>,
}

/// What stands in the file: the export, and a checksum that finds what was altered by accident.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    export: Export,
    blake3: PlanDigest,
}

impl Export {
    /// The papers that `by` holds of a run.
    #[must_use]
    pub fn new(by: String, federation: String, run: RunId, plan: Plan) -> Self {
        let format = FORMAT.to_owned();
        Self { format, by, federation, run, plan, records: Vec::new(), receipts: Vec::new() }
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let blake3 = PlanDigest(*blake3::hash(&write(self)).as_bytes());
        let mut bytes = write(&File { export: self.clone(), blake3 });
        bytes.push(b'\n');
        bytes
    }

    /// Reads a file that [`to_file`](Self::to_file) made.
    ///
    /// # Errors
    /// [`PaperError`] if it is anything else, down to the last byte.
    pub fn from_file(bytes: &[u8]) -> Result<Self, PaperError> {
        let what = "an export of records";
        let text = bytes.strip_suffix(b"\n").ok_or(PaperError::Altered { what })?;
        let File { export, blake3 } = read(what, text)?;
        if *blake3::hash(&write(&export)).as_bytes() != blake3.0 || export.format != FORMAT {
            return Err(PaperError::Altered { what });
        }
        Ok(export)
    }

    /// Whether the records are one chain under the plan, of rounds without a gap. Signatures are another matter.
    ///
    /// # Errors
    /// [`Breach`] names what is wrong.
    pub fn check_chain(&self) -> Result<(), Breach> {
        let terms = Terms {
            federation: &self.federation,
            run: &self.run,
            plan: &self.plan,
            plan_digest: self.plan.digest(),
            me: None,
        };
        let mut book = RecordBook::default();
        for SignedRecord { record, .. } in &self.records {
            book.check(&terms, record)?;
            book.take(&terms, record);
        }
        Ok(())
    }
}

/// Where two sides' papers differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// In which round; `None`: before the first.
    pub round: Option<u32>,
    /// About whom; `None`: about the round as a whole.
    pub member: Option<ClientId>,
    /// In words, with both sides' names.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.round, &self.member) {
            (Some(round), Some(member)) => write!(f, "round {round}, {member}: {}", self.what),
            (Some(round), None) => write!(f, "round {round}: {}", self.what),
            (None, _) => f.write_str(&self.what),
        }
    }
}

/// What a comparison of two exports found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Records that both hold, and that are the same.
    pub n_same: usize,
    /// The first difference; `None`: there is none.
    pub difference: Option<Difference>,
    /// Who holds later records than the other, and how many.
    pub ahead: Option<(String, usize)>,
}

impl Comparison {
    /// Compares what two sides hold of one run.
    #[must_use]
    pub fn of(ours: &Export, theirs: &Export) -> Self {
        let (us, them) = (&ours.by, &theirs.by);
        let whole = |what: String| Self {
            n_same: 0,
            difference: Some(Difference { round: None, member: None, what }),
            ahead: None,
        };
        if (&ours.federation, &ours.run) != (&theirs.federation, &theirs.run) {
            return whole(format!(
                "{us}'s papers are of {} in {}, {them}'s of {} in {}: export the same run",
                ours.run, ours.federation, theirs.run, theirs.federation
            ));
        }
        let (a, b) = (ours.plan.digest(), theirs.plan.digest());
        if a != b {
            return whole(format!("{us} trained under plan {a}, {them} under plan {b}"));
        }
        let by_round = |export: &Export| -> BTreeMap<u32, RoundRecord> {
            export.records.iter().map(|s| (s.record.round, s.record.clone())).collect()
        };
        let (a, b) = (by_round(ours), by_round(theirs));
        let mut n_same = 0;
        for (round, a) in &a {
            let Some(b) = b.get(round) else { continue };
            if a.digest() != b.digest() {
                let difference = Some(first_difference((us, a), (them, b)));
                return Self { n_same, difference, ahead: None };
            }
            n_same += 1;
        }
        let ahead = match a.len().cmp(&b.len()) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some((them.clone(), b.len() - n_same)),
            std::cmp::Ordering::Greater => Some((us.clone(), a.len() - n_same)),
        };
        Self { n_same, difference: None, ahead }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.n_same;
        match (&self.difference, &self.ahead) {
            (Some(difference), _) if difference.round.is_none() => {
                write!(f, "!!   not the same run: {difference}")
            }
            (Some(difference), _) => write!(
                f,
                "!!   the records differ after {n} that are the same; {difference}. The coordinator signed both: it \
                 showed its members different things"
            ),
            (None, None) => write!(f, "ok   the same {n} records"),
            (None, Some((who, more))) => {
                write!(f, "ok   the same {n} records; {who} holds {more} later ones too")
            }
        }
    }
}

/// The first thing in which two records of one round differ.
fn first_difference((us, a): (&str, &RoundRecord), (them, b): (&str, &RoundRecord)) -> Difference {
    let at = |member: Option<&ClientId>, what: String| Difference {
        round: Some(a.round),
        member: member.cloned(),
        what,
    };
    let everybody: BTreeSet<&ClientId> = a.cohort.iter().chain(&b.cohort).collect();
    for client in everybody {
        let (in_a, in_b) = (of(a, client), of(b, client));
        if in_a != in_b {
            return at(
                Some(client),
                format!("{us} was shown that it {in_a}, {them} that it {in_b}"),
            );
        }
    }
    if a.base != b.base {
        return at(
            None,
            format!("{us} was shown a start from model {}, {them} from {}", a.base, b.base),
        );
    }
    if a.model != b.model {
        return at(None, format!("{us} was shown model {}, {them} model {}", a.model, b.model));
    }
    if a.previous != b.previous {
        return at(None, format!("{us} and {them} were shown different records before it"));
    }
    at(None, format!("{us} and {them} were shown other times or another order of members"))
}

/// What `record` says of `client`, in words.
fn of(record: &RoundRecord, client: &ClientId) -> String {
    if let Some(c) = record.contributions.iter().find(|c| c.client == *client) {
        let age = match c.staleness {
            0 => String::new(),
            n => format!(", {n} rounds old"),
        };
        return format!("contributed update {} with weight {}{age}", c.update, c.weight);
    }
    if let Some((_, reason)) = record.missing.iter().find(|(missing, _)| missing == client) {
        return format!("is missing ({reason})");
    }
    match record.cohort.contains(client) {
        true => "was asked".to_owned(),
        false => "was not asked".to_owned(),
    }
}
