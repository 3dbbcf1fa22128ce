//! What leaves the institution: one line in the journal for every message, before its first byte leaves.
//!
//! The door of [`privacy`](comity_privacy::release) says *what* of the data may leave; this one says that it
//! left, and lets nothing else through. [`Leaving`] is made here only, and the connection sends nothing that
//! is not one. [`Kind`] is the whole list of what a node can say.
//!
//! Bytes are those of the messages, without the framing of gRPC, HTTP/2 and TLS around them. Requests to
//! models, plans and assignments carry nothing back but their own few bytes, which have lines too.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use comity_certs::Clock;
use comity_federation::{Contribution, PlanDigest, RunId, Time, UpdateDigest};
use comity_proto::v1;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::store::{Books, Entry};

/// Longest message that the journal keeps as it was sent; of longer ones it keeps the digest, and the bytes
/// are where they are kept anyway.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// Everything that a node can say to its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Its version of protocol and program.
    Hello,
    /// Which runs it believes to be open.
    Follow,
    /// It agrees to a plan.
    CheckIn,
    /// It does not agree to a plan, and why.
    Decline,
    /// Nothing will come from it in a round, and why.
    Withdraw,
    /// Which model it wants, from which byte on.
    FetchModel,
    /// The header of an update: how much of it has arrived?
    UploadOffset,
    /// A released update: header, and bytes from an offset on.
    Update,
    /// Its signature under a round's record.
    Countersign,
}

impl Kind {
    /// As it is listed.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Follow => "follow",
            Self::CheckIn => "check_in",
            Self::Decline => "decline",
            Self::Withdraw => "withdraw",
            Self::FetchModel => "fetch_model",
            Self::UploadOffset => "upload_offset",
            Self::Update => "update",
            Self::Countersign => "countersign",
        }
    }
}

/// One line: what left, when, and about what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Departure {
    /// By this machine's clock.
    pub(crate) at: Time,
    pub(crate) kind: Kind,
    /// Bytes of the message; of an update, its header and the bytes from `offset` on.
    pub(crate) bytes: u64,
    /// BLAKE3 of the message, or of an update's bytes from its first one on: the name of its blob.
    pub(crate) digest: UpdateDigest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<RunId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<PlanDigest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) round: Option<u32>,
    /// First byte of the update that left this time; 0 unless it was resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<u64>,
    /// The message, or an update's header, as protobuf in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
}

/// What a message is about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    pub(crate) run: Option<&'a RunId>,
    pub(crate) plan: Option<PlanDigest>,
    pub(crate) round: Option<u32>,
}

impl<'a> About<'a> {
    /// A run as a whole.
    pub(crate) fn run(run: &'a RunId) -> Self {
        Self { run: Some(run), ..Self::default() }
    }
}

/// Why something does not leave.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EgressError {
    /// The journal cannot be written: what has no line does not leave.
    #[error("nothing leaves that the journal does not have: {0}")]
    Journal(String),
    /// The institution's ceiling for a round.
    #[error(
        "round {round} of run {run} would let out updates of {bytes} bytes, this institution's policy allows {bytes_max} \
         (bytes_out_round_max)"
    )]
    Ceiling {
        /// Which run.
        run: RunId,
        /// Which round.
        round: u32,
        /// With this update; one that is sent again counts once.
        bytes: u64,
        /// What the policy says.
        bytes_max: u64,
    },
}

/// Something that has its line in the journal and may leave now.
#[derive(Debug)]
pub(crate) struct Leaving<M>(M);

impl<M> Leaving<M> {
    /// To be sent, now.
    pub(crate) fn into_message(self) -> M {
        self.0
    }
}

/// The way out of a node; clones share it.
#[derive(Clone)]
pub(crate) struct Egress {
    /// `None` for a look at the connection by a command, beside a node that holds the journal.
    books: Option<Books>,
    clock: Clock,
    bytes_out_round_max: Option<u64>,
    of_rounds: Arc<Mutex<BytesOfRounds>>,
    /// Why the journal could not be written, once it could not.
    failure: Arc<Mutex<Option<String>>>,
}

/// Updates that left in each round of the open runs, with their bytes: what is sent again tells nothing new, and
/// counts once.
pub(crate) type BytesOfRounds = BTreeMap<(RunId, u32), BTreeMap<UpdateDigest, u64>>;

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Egress(at most {:?} bytes a round)", self.bytes_out_round_max)
    }
}

impl Egress {
    /// The way out of the node whose journal is `books`; `of_rounds` left before.
    pub(crate) fn new(
        books: Books,
        clock: Clock,
        bytes_out_round_max: Option<u64>,
        of_rounds: BytesOfRounds,
    ) -> Self {
        let of_rounds = Arc::new(Mutex::new(of_rounds));
        Self { books: Some(books), clock, bytes_out_round_max, of_rounds, failure: Arc::default() }
    }

    /// The way out of a command that only says hello: version of protocol and program. It has no line,
    /// because the node that may be running holds the journal.
    pub(crate) fn of_check(clock: Clock) -> Self {
        Self {
            books: None,
            clock,
            bytes_out_round_max: Some(0),
            of_rounds: Arc::default(),
            failure: Arc::default(),
        }
    }

    /// Lets a message out.
    ///
    /// # Errors
    /// [`EgressError::Journal`] if it cannot be recorded first.
    pub(crate) fn message<M: Message>(
        &self,
        kind: Kind,
        about: About<'_>,
        message: M,
    ) -> Result<Leaving<M>, EgressError> {
        let bytes = message.encode_to_vec();
        self.record(Departure {
            at: self.clock.now(),
            kind,
            bytes: bytes.len() as u64,
            digest: UpdateDigest(*blake3::hash(&bytes).as_bytes()),
            run: about.run.cloned(),
            plan: about.plan,
            round: about.round,
            offset: None,
            message: (bytes.len() <= KEPT_BYTES_MAX).then(|| hex::encode(&bytes)),
        })?;
        Ok(Leaving(message))
    }

    /// Lets an update out, from its byte `offset` on.
    ///
    /// # Errors
    /// [`EgressError::Ceiling`] if the round would let out more than the institution allows.
    pub(crate) fn update(
        &self,
        run: &RunId,
        contribution: &Contribution,
        header: v1::UpdateHeader,
        offset: u64,
    ) -> Result<Leaving<v1::UpdateHeader>, EgressError> {
        let head = header.encode_to_vec();
        let bytes = head.len() as u64 + contribution.delta_bytes().saturating_sub(offset);
        let round = contribution.round;
        let mut of_rounds = self.of_rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let of_round = of_rounds.entry((run.clone(), round)).or_default();
        let others = of_round.iter().filter(|(update, _)| **update != contribution.update);
        let whole = contribution.delta_bytes();
        let all = others.fold(whole, |all, (_, bytes)| all.saturating_add(*bytes));
        if let Some(bytes_max) = self.bytes_out_round_max
            && all > bytes_max
        {
            return Err(EgressError::Ceiling { run: run.clone(), round, bytes: all, bytes_max });
        }
        self.record(Departure {
            at: self.clock.now(),
            kind: Kind::Update,
            bytes,
            digest: contribution.update,
            run: Some(run.clone()),
            plan: Some(contribution.plan),
            round: Some(round),
            offset: Some(offset),
            message: Some(hex::encode(&head)),
        })?;
        of_round.insert(contribution.update, whole);
        Ok(Leaving(header))
    }

    /// Forgets the rounds of a run that has ended.
    pub(crate) fn run_ended(&self, run: &RunId) {
        let mut of_rounds = self.of_rounds.lock().unwrap_or_else(PoisonError::into_inner);
        of_rounds.retain(|(open, _), _| open != run);
    }

    /// Why the journal could not be written: then the node cannot go on, and no connection is to blame.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn record(&self, departure: Departure) -> Result<(), EgressError> {
        match &self.books {
            Some(books) => books.append(&Entry::Left { departure }).map_err(|error| {
                let why = format!("{error:#}");
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                *failure = Some(why.clone());
                EgressError::Journal(why)
            }),
            None if departure.kind == Kind::Hello => Ok(()),
            None => Err(EgressError::Journal("this command only says hello".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_federation::{ModelDigest, UpdateEncoding};
    use comity_proto::convert::update_header;

    fn contribution(n_parameters: u64) -> Contribution {
        Contribution {
            round: 1,
            plan: PlanDigest([1; 32]),
            base: ModelDigest([2; 32]),
            update: UpdateDigest([3; 32]),
            n_parameters,
            encoding: UpdateEncoding::Int32,
            n_correct: None,
            loss_sum: None,
        }
    }

    fn clock() -> Clock {
        Clock::from_fn(|| std::time::SystemTime::UNIX_EPOCH)
    }

    fn lines(dir: &std::path::Path) -> Vec<Departure> {
        let (_, records) = comity_journal::Journal::open(dir.join("journal.log")).unwrap();
        let entries = records.iter().map(|record| record.json::<Entry>().unwrap());
        entries
            .filter_map(|entry| match entry {
                Entry::Left { departure } => Some(departure),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn what_leaves_has_its_line_first_and_can_be_made_again_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let books = Books::open_empty(dir.path());
        let egress = Egress::new(books, clock(), None, BTreeMap::new());
        let run: RunId = "r-1".parse().unwrap();
        let message = v1::DeclineRequest { run_id: "r-1".to_owned(), reason: "no".to_owned() };
        let left = egress.message(Kind::Decline, About::run(&run), message.clone()).unwrap();
        assert_eq!(left.into_message(), message);
        drop(egress);
        let lines = lines(dir.path());
        assert_eq!((lines[0].kind, lines[0].run.as_ref()), (Kind::Decline, Some(&run)));
        let bytes = hex::decode(lines[0].message.as_ref().unwrap()).unwrap();
        assert_eq!(bytes, message.encode_to_vec());
        assert_eq!(lines[0].bytes, bytes.len() as u64);
        assert_eq!(lines[0].digest.0, *blake3::hash(&bytes).as_bytes());
    }

    #[test]
    fn a_round_lets_out_no_more_bytes_than_the_policy_allows() {
        let dir = tempfile::tempdir().unwrap();
        let books = Books::open_empty(dir.path());
        let run: RunId = "r-1".parse().unwrap();
        let update = contribution(100);
        let egress = Egress::new(books, clock(), Some(500), BTreeMap::new());
        let let_out = |update: &Contribution, offset| {
            egress.update(&run, update, update_header(&run, update), offset)
        };
        let_out(&update, 0).unwrap();
        // The connection broke: the rest is sent again, which tells nothing new.
        let_out(&update, 300).unwrap();
        let second = Contribution { update: UpdateDigest([4; 32]), ..update.clone() };
        let refused = let_out(&second, 0).unwrap_err();
        assert!(matches!(refused, EgressError::Ceiling { bytes: 800, bytes_max: 500, .. }));
        let_out(&Contribution { round: 2, ..second }, 0).unwrap();
        let long = Contribution { round: 3, ..contribution(126) };
        assert!(let_out(&long, 0).is_err());
        drop(egress);
        let lines = lines(dir.path());
        assert_eq!(lines.len(), 3, "what was refused has no line, because it did not leave");
        let header = update_header(&run, &update).encoded_len() as u64;
        assert_eq!((lines[1].offset, lines[1].bytes), (Some(300), header + 100));
    }

    #[test]
    fn a_command_that_looks_at_the_connection_says_hello_and_nothing_else() {
        let egress = Egress::of_check(clock());
        let hello = v1::HelloRequest::default();
        egress.message(Kind::Hello, About::default(), hello).unwrap();
        let follow = v1::FollowRequest::default();
        assert!(egress.message(Kind::Follow, About::default(), follow).is_err());
    }
}
