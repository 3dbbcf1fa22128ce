//! Who belongs to the federation: a pure fold over the journal's lines of membership.
//!
//! ```text
//!            invite                join                    revoke
//!  (nobody) ───────► invited ─────────────────► enrolled ─────────► revoked
//!                       │  join       approve      │  ▲                │
//!                       └──────► awaiting ─────────┘  └────────────────┘
//!                                   │ refuse             invite, join with another key
//! ```
//!
//! One member is one name and one public key. The key stays when a certificate is renewed; another key needs
//! another invitation. Of an invitation's secret only the SHA-256 is kept. Every rule here checks first and
//! changes nothing: what it allows becomes a [`Change`], which is durable before [`Registry::apply`] sees it.
//!
//! Deliberately not here: certificates themselves (`membership`), and who calls (`service/identity`).

mod names;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use comity_certs::same_secret;
use comity_federation::{KeyFingerprint, Time};
use serde::{Deserialize, Serialize};

pub(crate) use names::MemberName;
pub use names::OperatorRole;
pub(crate) use refusal::Refusal;

/// Members and invitations that a federation may have, ended ones included.
const MEMBERS_MAX: usize = 10_000;

/// What happened to who belongs here: with time, person and reason a line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Change {
    /// The federation was founded: by its first operator, who is an admin, with this coordinator.
    Founded { federation: String, operator: KeyFingerprint, coordinator: KeyFingerprint },
    /// Somebody was invited; an earlier invitation of the same member holds no more.
    Invited {
        who: MemberName,
        title: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<OperatorRole>,
        /// SHA-256 of the one-time secret, hexadecimal.
        secret_sha256: String,
        expires: Time,
    },
    /// The invitation was shown, with this key; a second operator has to approve.
    Asked { who: MemberName, key: KeyFingerprint },
    /// An operator approved that key.
    Approved { who: MemberName, key: KeyFingerprint },
    /// An operator refused it.
    RefusedJoin { who: MemberName, key: KeyFingerprint },
    /// It was given its first certificate.
    Enrolled { who: MemberName, key: KeyFingerprint, serial: String, not_after: Time },
    /// It was given another certificate for the same key.
    Renewed { who: MemberName, serial: String, not_after: Time },
    /// It belongs here no more.
    Revoked { who: MemberName },
    /// An operator may do something else than before.
    RoleSet { who: MemberName, role: OperatorRole },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Founded { federation, .. } => write!(f, "founded {federation}"),
            Self::Invited { who, role: None, .. } => write!(f, "invited {who}"),
            Self::Invited { who, role: Some(role), .. } => write!(f, "invited {who} as {role}"),
            Self::Asked { who, key } => write!(f, "{who} asked to join with key {key}"),
            Self::Approved { who, key } => write!(f, "approved {who} with key {key}"),
            Self::RefusedJoin { who, key } => write!(f, "refused {who} with key {key}"),
            Self::Enrolled { who, key, .. } => write!(f, "enrolled {who} with key {key}"),
            Self::Renewed { who, serial, .. } => write!(f, "renewed {who}, certificate {serial}"),
            Self::Revoked { who } => write!(f, "revoked {who}"),
            Self::RoleSet { who, role } => write!(f, "made {who} a {role}"),
        }
    }
}

/// Who decided something, when and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) at: Time,
    pub(crate) by: String,
    pub(crate) why: String,
}

/// What became of an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Used(KeyFingerprint),
    Replaced,
    Refused(Decision),
    Revoked,
}

/// An invitation.
#[derive(Clone, Debug)]
pub(crate) struct Invited {
    who: MemberName,
    title: String,
    role: Option<OperatorRole>,
    pub(crate) expires: Time,
    /// Who invited, and why.
    pub(crate) from: Decision,
    pub(crate) asked: Option<KeyFingerprint>,
    /// Operators who approved it, the one who invited first.
    approved_by: Vec<String>,
    fate: Fate,
}

/// Somebody who is, was or shall be a member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    pub(crate) title: String,
    /// What an operator may do; `None` for an institution's node.
    pub(crate) role: Option<OperatorRole>,
    /// The key with which it is enrolled.
    pub(crate) key: Option<KeyFingerprint>,
    /// Until when its latest certificate is valid, and when it was made.
    pub(crate) expires: Time,
    pub(crate) renewed: Time,
    /// Operators who let it in.
    pub(crate) approved_by: Vec<String>,
    /// Serial numbers of its certificates, with their ends.
    pub(crate) serials: Vec<(String, Time)>,
    pub(crate) revoked: Option<Decision>,
    /// Why its latest request to join was refused.
    pub(crate) refused: Option<Decision>,
    /// SHA-256 of its latest invitation's secret.
    invitation: Option<String>,
}

/// A certificate that must not be taken any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RevokedSerial {
    pub(crate) who: MemberName,
    pub(crate) serial: String,
    /// Since when, and when it would have expired.
    pub(crate) at: Time,
    pub(crate) until: Time,
    /// Another key took its place.
    pub(crate) is_superseded: bool,
}

/// How a request to join goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Joining {
    /// A certificate is to be made, and the change recorded with it.
    Enrol(MemberName),
    /// It was enrolled before and asks again: a certificate as for a renewal.
    Again(MemberName),
    /// The key is to be recorded; then it waits.
    Ask(MemberName),
    /// It waits for operators.
    Await { approvals: u32, needed: u32 },
}

/// The members of a federation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    members: BTreeMap<MemberName, Member>,
    /// By SHA-256 of the secret.
    invitations: BTreeMap<String, Invited>,
    /// Certificates that were revoked, or whose key was replaced.
    revoked: Vec<RevokedSerial>,
    /// Keys that were revoked, or replaced: none of them enters again.
    ended_keys: BTreeSet<KeyFingerprint>,
    founded: bool,
}

/// Name of the operator who founds.
pub(crate) const FIRST_OPERATOR: &str = "operator";

impl Registry {
    /// Takes a change that the journal holds.
    ///
    /// # Errors
    /// With what is wrong, if it does not follow from those before: the journal is then not to be relied on.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        at: Time,
        by: &str,
        why: &str,
    ) -> Result<(), String> {
        let decision = || Decision { at, by: by.to_owned(), why: why.to_owned() };
        match change {
            // The first operator is enrolled in the line after.
            Change::Founded { .. } => {
                if self.founded {
                    return Err("the federation was founded twice".to_owned());
                }
                self.founded = true;
            }
            Change::Invited { who, title, role, secret_sha256, expires } => {
                let member = self.members.entry(who.clone()).or_default();
                if let Some(earlier) = member.invitation.replace(secret_sha256.clone())
                    && let Some(earlier) = self.invitations.get_mut(&earlier)
                    && earlier.fate == Fate::Open
                {
                    earlier.fate = Fate::Replaced;
                }
                if member.key.is_none() {
                    member.title.clone_from(title);
                    member.role = *role;
                }
                member.refused = None;
                let invited = Invited {
                    who: who.clone(),
                    title: title.clone(),
                    role: *role,
                    expires: *expires,
                    from: decision(),
                    asked: None,
                    approved_by: vec![by.to_owned()],
                    fate: Fate::Open,
                };
                self.invitations.insert(secret_sha256.clone(), invited);
            }
            Change::Asked { who, key } => self.open_invitation(who)?.asked = Some(*key),
            Change::Approved { who, .. } => {
                self.open_invitation(who)?.approved_by.push(by.to_owned());
            }
            Change::RefusedJoin { who, .. } => {
                self.open_invitation(who)?.fate = Fate::Refused(decision());
                self.member(who)?.refused = Some(decision());
            }
            Change::Enrolled { who, key, serial, not_after } => {
                // Set-up code enrols without an invitation.
                let invited = self.open_invitation(who).ok().map(|invited| {
                    invited.fate = Fate::Used(*key);
                    (invited.title.clone(), invited.role, invited.approved_by.clone())
                });
                let before = self.members.entry(who.clone()).or_default();
                if let Some(replaced) = before.key.replace(*key)
                    && replaced != *key
                {
                    self.ended_keys.insert(replaced);
                    self.revoked.extend(before.ended(who, at, true));
                }
                let role = match who {
                    MemberName::Client(_) => None,
                    MemberName::Operator(_) => Some(OperatorRole::Admin),
                };
                let (title, role, approved_by) =
                    invited.unwrap_or_else(|| (who.to_string(), role, vec![by.to_owned()]));
                (before.title, before.role, before.approved_by) = (title, role, approved_by);
                (before.revoked, before.refused) = (None, None);
                before.certified(serial, *not_after, at);
            }
            Change::Renewed { who, serial, not_after } => {
                self.member(who)?.certified(serial, *not_after, at);
            }
            Change::Revoked { who } => {
                if let Ok(invited) = self.open_invitation(who) {
                    invited.fate = Fate::Revoked;
                }
                let member = self.member(who)?;
                member.revoked = Some(decision());
                let ended = member.ended(who, at, false);
                let key = member.key.take();
                self.ended_keys.extend(key);
                self.revoked.extend(ended);
            }
            Change::RoleSet { who, role } => self.member(who)?.role = Some(*role),
        }
        Ok(())
    }

    fn member(&mut self, who: &MemberName) -> Result<&mut Member, String> {
        self.members.get_mut(who).ok_or_else(|| format!("{who} was never invited"))
    }

    fn open_invitation(&mut self, who: &MemberName) -> Result<&mut Invited, String> {
        let secret = self.members.get(who).and_then(|member| member.invitation.clone());
        secret
            .and_then(|secret| self.invitations.get_mut(&secret))
            .filter(|invited| invited.fate == Fate::Open)
            .ok_or_else(|| format!("{who} has no open invitation"))
    }

    /// The certificates that must not be taken at `now`, though they have not expired.
    pub(crate) fn revoked_serials(&self, now: Time) -> impl Iterator<Item = &RevokedSerial> {
        self.revoked.iter().filter(move |revoked| revoked.until > now)
    }

    /// Whether the federation was founded.
    pub(crate) fn is_founded(&self) -> bool {
        self.founded
    }

    /// All members, by name.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&MemberName, &Member)> {
        self.members.iter()
    }

    /// The invitation of `who` that waits to be used.
    pub(crate) fn invitation(&self, who: &MemberName) -> Option<&Invited> {
        let secret = self.members.get(who)?.invitation.as_ref()?;
        self.invitations.get(secret).filter(|invited| invited.fate == Fate::Open)
    }

    /// What `who` may do, calling with a certificate of `key`: `None` for an institution's node.
    pub(crate) fn admit(
        &self,
        who: &MemberName,
        key: &KeyFingerprint,
        now: Time,
    ) -> Result<Option<OperatorRole>, Refusal> {
        let Some(member) = self.members.get(who) else {
            return Err(Refusal::NotAMember(who.clone()));
        };
        if member.key != Some(*key) {
            return Err(match &member.revoked {
                Some(decision) => Refusal::Revoked(who.clone(), decision.clone()),
                None if member.key.is_none() => Refusal::NotAMember(who.clone()),
                None => Refusal::OtherKey(who.clone()),
            });
        }
        if now > member.expires {
            return Err(Refusal::CertificateExpired(who.clone(), member.expires));
        }
        Ok(member.role)
    }

    /// Whether `who` is still a member.
    pub(crate) fn still_here(&self, who: &MemberName) -> Result<(), Refusal> {
        let member = self.members.get(who);
        let revoked = member.filter(|member| member.key.is_none());
        match (member, revoked.and_then(|member| member.revoked.clone())) {
            (_, Some(decision)) => Err(Refusal::Revoked(who.clone(), decision)),
            (None, _) => Err(Refusal::NotAMember(who.clone())),
            _ => Ok(()),
        }
    }

    /// Whether one more may be invited.
    pub(crate) fn invite(&self) -> Result<(), Refusal> {
        if self.members.len().max(self.invitations.len()) >= MEMBERS_MAX {
            return Err(Refusal::TooMany(MEMBERS_MAX));
        }
        Ok(())
    }

    /// What follows from a request to join with the secret whose SHA-256 is `secret`, and with `key`.
    pub(crate) fn join(
        &self,
        secret: &str,
        key: &KeyFingerprint,
        now: Time,
        needed: u32,
    ) -> Result<Joining, Refusal> {
        // All of them are looked at, so that the time says nothing.
        let mut found = None;
        for (digest, invited) in &self.invitations {
            if same_secret(digest.as_bytes(), secret.as_bytes()) {
                found = Some(invited);
            }
        }
        let invited = found.ok_or(Refusal::UnknownInvitation)?;
        let who = invited.who.clone();
        match &invited.fate {
            Fate::Used(used) if used == key => {
                let member = &self.members[&who];
                return match (&member.revoked, member.key) {
                    (_, Some(enrolled)) if enrolled == *key => Ok(Joining::Again(who)),
                    (Some(decision), _) => Err(Refusal::Revoked(who, decision.clone())),
                    _ => Err(Refusal::OtherKey(who)),
                };
            }
            Fate::Used(_) => return Err(Refusal::UsedAlready(who)),
            Fate::Replaced => return Err(Refusal::Replaced(who)),
            Fate::Refused(decision) => return Err(Refusal::Refused(who, decision.clone())),
            Fate::Revoked => return Err(Refusal::Withdrawn(who)),
            Fate::Open => {}
        }
        if now > invited.expires {
            return Err(Refusal::Expired(who, invited.expires));
        }
        if invited.asked.is_some_and(|asked| asked != *key) {
            return Err(Refusal::UsedAlready(who));
        }
        let of_another = |(name, member): (&MemberName, &Member)| {
            (*name != who && member.key == Some(*key)).then(|| name.clone())
        };
        if self.ended_keys.contains(key) || self.members.iter().find_map(of_another).is_some() {
            return Err(Refusal::KeyTaken);
        }
        let approvals = u32::try_from(self.approvals(invited).len()).unwrap_or(u32::MAX);
        Ok(if approvals >= needed {
            Joining::Enrol(who)
        } else if invited.asked.is_none() {
            Joining::Ask(who)
        } else {
            Joining::Await { approvals, needed }
        })
    }

    /// Who approved `invited` and is still an admin.
    pub(crate) fn approvals<'a>(&self, invited: &'a Invited) -> Vec<&'a str> {
        let counts = |name: &&str| {
            let operator = MemberName::Operator((*name).to_owned());
            self.members
                .get(&operator)
                .is_some_and(|m| m.key.is_some() && m.role == Some(OperatorRole::Admin))
        };
        invited.approved_by.iter().map(String::as_str).filter(counts).collect()
    }

    /// Whether operator `by` may decide that `who` joins with `key`.
    pub(crate) fn decide(
        &self,
        who: &MemberName,
        key: &KeyFingerprint,
        approved: bool,
        by: &str,
    ) -> Result<(), Refusal> {
        let invited = self.invitation(who).ok_or_else(|| Refusal::NobodyAsks(who.clone()))?;
        let asked = invited.asked.ok_or_else(|| Refusal::NobodyAsks(who.clone()))?;
        if asked != *key {
            return Err(Refusal::OtherKeyAsks { who: who.clone(), asked });
        }
        if approved && invited.approved_by.iter().any(|one| one == by) {
            return Err(Refusal::ApprovedAlready { who: who.clone(), by: by.to_owned() });
        }
        Ok(())
    }

    /// Who may have another certificate for `key` at `now`.
    pub(crate) fn renew(
        &self,
        key: &KeyFingerprint,
        now: Time,
        grace_ms: u64,
    ) -> Result<MemberName, Refusal> {
        let found = self.members.iter().find(|(_, member)| member.key == Some(*key));
        let Some((who, member)) = found else {
            return Err(match self.ended_keys.contains(key) {
                true => self.why_ended(key),
                false => Refusal::UnknownKey,
            });
        };
        if now.0 > member.renewed.0.saturating_add(grace_ms) && now > member.expires {
            return Err(Refusal::GoneTooLong(who.clone(), member.renewed));
        }
        Ok(who.clone())
    }

    fn why_ended(&self, key: &KeyFingerprint) -> Refusal {
        let used = |invited: &&Invited| invited.fate == Fate::Used(*key);
        let who = self.invitations.values().find(used).map(|invited| &invited.who);
        match who.and_then(|who| Some((who, self.members[who].revoked.as_ref()?))) {
            Some((who, decision)) => Refusal::Revoked(who.clone(), decision.clone()),
            None => Refusal::KeyEnded,
        }
    }

    /// Whether `who` can be revoked.
    pub(crate) fn revoke(&self, who: &MemberName) -> Result<(), Refusal> {
        let member = self.members.get(who).ok_or_else(|| Refusal::NotAMember(who.clone()))?;
        if member.key.is_none() && self.invitation(who).is_none() {
            return Err(match &member.revoked {
                Some(decision) => Refusal::Revoked(who.clone(), decision.clone()),
                None => Refusal::NotAMember(who.clone()),
            });
        }
        self.leaves_an_admin(who)
    }

    /// Whether `who` can be given `role`.
    pub(crate) fn set_role(&self, who: &MemberName, role: OperatorRole) -> Result<(), Refusal> {
        let member = self.members.get(who).ok_or_else(|| Refusal::NotAMember(who.clone()))?;
        if member.role.is_none() {
            return Err(Refusal::NoOperator(who.clone()));
        }
        if member.key.is_none() {
            return Err(Refusal::NotAMember(who.clone()));
        }
        if role < OperatorRole::Admin { self.leaves_an_admin(who) } else { Ok(()) }
    }

    /// A federation without an admin could never have one again.
    fn leaves_an_admin(&self, who: &MemberName) -> Result<(), Refusal> {
        let is_admin =
            |member: &Member| member.key.is_some() && member.role == Some(OperatorRole::Admin);
        if self.members.get(who).is_some_and(is_admin)
            && !self.members.iter().any(|(name, member)| name != who && is_admin(member))
        {
            return Err(Refusal::LastAdmin(who.clone()));
        }
        Ok(())
    }

    /// The admins, by name: whom to ask.
    pub(crate) fn admins(&self) -> Vec<&str> {
        self.members
            .iter()
            .filter(|(_, m)| m.key.is_some() && m.role == Some(OperatorRole::Admin))
            .filter_map(|(name, _)| match name {
                MemberName::Operator(name) => Some(name.as_str()),
                MemberName::Client(_) => None,
            })
            .collect()
    }
}

impl Member {
    /// Its certificates, which end at `at`.
    fn ended(&mut self, who: &MemberName, at: Time, is_superseded: bool) -> Vec<RevokedSerial> {
        let serials = std::mem::take(&mut self.serials).into_iter();
        let ended =
            |(serial, until)| RevokedSerial { who: who.clone(), serial, at, until, is_superseded };
        serials.map(ended).collect()
    }

    fn certified(&mut self, serial: &str, not_after: Time, at: Time) {
        (self.expires, self.renewed) = (not_after, at);
        // What has expired needs no revocation.
        self.serials.retain(|(_, end)| *end > at);
        self.serials.push((serial.to_owned(), not_after));
    }
}
