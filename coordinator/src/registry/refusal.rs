//! Why somebody is not let in, in sentences for whoever reads them.

use comity_certs::date_of;
use comity_federation::{KeyFingerprint, Time};
use tonic::{Code, Status};

use super::{Decision, MemberName};

/// Why the registry says no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0} is not a member of this federation; ask its operator for an invitation")]
    NotAMember(MemberName),
    #[error(
        "{0} is enrolled with another key than this certificate's; use the certificate.pem and the key that \
         were enrolled last, or ask the operator for a new invitation"
    )]
    OtherKey(MemberName),
    #[error(
        "{0} was revoked on {date} by operator {by}: {why}; only a new invitation lets it in again",
        date = date_of(.1.at), by = .1.by, why = .1.why
    )]
    Revoked(MemberName, Decision),
    #[error(
        "the latest certificate of {0} expired on {date}; run `comity-client renew`, and see why it did not renew \
         by itself",
        date = date_of(*.1)
    )]
    CertificateExpired(MemberName, Time),
    #[error(
        "this coordinator has made no such invitation; the token is of another coordinator, or of a federation \
         that was set up anew: ask the operator for another"
    )]
    UnknownInvitation,
    #[error(
        "the invitation of {0} was used already, with another key; if not by you, tell the operator at once"
    )]
    UsedAlready(MemberName),
    #[error("the invitation of {0} was replaced by a newer one; use that")]
    Replaced(MemberName),
    #[error("the invitation of {0} was withdrawn; ask the operator why")]
    Withdrawn(MemberName),
    #[error(
        "the invitation of {0} expired on {date}; ask the operator for another, and use it before it expires",
        date = date_of(*.1)
    )]
    Expired(MemberName, Time),
    #[error(
        "the request of {0} to join was refused on {date} by operator {by}: {why}",
        date = date_of(.1.at), by = .1.by, why = .1.why
    )]
    Refused(MemberName, Decision),
    #[error(
        "this key is or was another membership's, and a key is of one only; move it away so that `join` makes a \
         new one"
    )]
    KeyTaken,
    #[error("this key is no longer enrolled: a newer invitation was used in its place")]
    KeyEnded,
    #[error("no member is enrolled with this key; ask the operator for an invitation")]
    UnknownKey,
    #[error(
        "{0} was last here on {date}, too long ago to be renewed; ask the operator for a new invitation",
        date = date_of(*.1)
    )]
    GoneTooLong(MemberName, Time),
    #[error("nobody asks to join as {0}; `members list` shows who does")]
    NobodyAsks(MemberName),
    #[error(
        "{who} asks with the key {asked}, not with this one: have its fingerprint read out again; if it is theirs, \
         approve that one, otherwise refuse it"
    )]
    OtherKeyAsks { who: MemberName, asked: KeyFingerprint },
    #[error(
        "operator {by} has approved {who} already, by the invitation or before; another operator has to"
    )]
    ApprovedAlready { who: MemberName, by: String },
    #[error("{0} is no operator, and only operators have roles")]
    NoOperator(MemberName),
    #[error("{0} is the last admin, and nobody could ever be let in again; make another one first")]
    LastAdmin(MemberName),
    #[error("the federation has {0} members and invitations, as many as it can have")]
    TooMany(usize),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::NotAMember(_)
            | Refusal::OtherKey(_)
            | Refusal::Revoked(..)
            | Refusal::CertificateExpired(..)
            | Refusal::UnknownInvitation
            | Refusal::UnknownKey
            | Refusal::KeyEnded
            | Refusal::GoneTooLong(..)
            | Refusal::Refused(..) => Code::PermissionDenied,
            Refusal::UsedAlready(_) | Refusal::ApprovedAlready { .. } => Code::AlreadyExists,
            Refusal::NobodyAsks(_) => Code::NotFound,
            Refusal::TooMany(_) => Code::ResourceExhausted,
            Refusal::Replaced(_)
            | Refusal::Withdrawn(_)
            | Refusal::Expired(..)
            | Refusal::KeyTaken
            | Refusal::OtherKeyAsks { .. }
            | Refusal::NoOperator(_)
            | Refusal::LastAdmin(_) => Code::FailedPrecondition,
        };
        Self::new(code, refusal.to_string())
    }
}
