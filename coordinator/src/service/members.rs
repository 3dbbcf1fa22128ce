//! What operators may ask about who belongs to the federation.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use comity_certs::{Identity, Invitation, new_secret, root_fingerprint};
use comity_federation::{KeyFingerprint, Time};
use comity_proto::convert::digest;
use comity_proto::limits::{INVITATION_TIME_MAX, REASON_BYTES_MAX, TITLE_BYTES_MAX};
use comity_proto::v1::{self, invite_request::Who};
use tonic::{Request, Status};
use tracing::error;
use zeroize::Zeroizing;

use super::control::ControlService;
use super::enrolment::hexadecimal;
use super::{identity, status};
use crate::membership::{Answer, Ask, Asked};
use crate::registry::{Invited, Member, MemberName, OperatorRole, Refusal, Registry};

/// What a token says besides who is invited.
#[derive(Clone, Debug)]
pub(crate) struct Inviting {
    pub(crate) federation: String,
    /// Folder with root.pem.
    pub(crate) certs: PathBuf,
    /// `https://HOST:PORT` where members join; `None` where nobody can.
    pub(crate) url: Option<String>,
}

impl Inviting {
    /// A new secret, and how the registry names it.
    pub(crate) fn secret() -> anyhow::Result<(Zeroizing<[u8; 32]>, String)> {
        let secret = new_secret()?;
        let name = hexadecimal(&Invitation::secret_digest(&secret));
        Ok((secret, name))
    }

    /// The token of an invitation of `who` by an operator, whose name and key these are.
    pub(crate) fn token(
        &self,
        who: &MemberName,
        secret: Zeroizing<[u8; 32]>,
        expires: Time,
        (operator_name, operator): (&str, KeyFingerprint),
    ) -> anyhow::Result<Zeroizing<String>> {
        let path = self.certs.join("root.pem");
        let root = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let invitation = Invitation {
            url: self.url.clone().context("this coordinator takes nobody in")?,
            root: root_fingerprint(&root)?,
            secret,
            identity: Identity { federation: self.federation.clone(), role: who.role() },
            expires,
            operator_name: operator_name.to_owned(),
            operator,
        };
        Ok(invitation.token())
    }
}

/// Text that people wrote, without control characters and not too long.
pub(crate) fn written(what: &str, text: &str, bytes_max: usize) -> Result<String, Status> {
    let text = text.trim();
    if text.len() > bytes_max || text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "{what} has at most {bytes_max} bytes, on one line"
        )));
    }
    Ok(text.to_owned())
}

fn needed(what: &str, text: &str) -> Result<String, Status> {
    match written(what, text, REASON_BYTES_MAX)? {
        empty if empty.is_empty() => {
            Err(Status::invalid_argument(format!("{what} is needed: it stands in the record")))
        }
        text => Ok(text),
    }
}

fn name(text: &str) -> Result<MemberName, Status> {
    text.parse().map_err(Status::invalid_argument)
}

fn role(role: i32) -> Result<OperatorRole, Status> {
    v1::OperatorRole::try_from(role)
        .ok()
        .and_then(OperatorRole::of_wire)
        .ok_or_else(|| Status::invalid_argument("a role is viewer, launcher or admin"))
}

impl ControlService {
    pub(super) async fn invite_member(
        &self,
        request: Request<v1::InviteRequest>,
    ) -> Result<v1::InviteReply, Status> {
        let by = identity::admin(&request)?;
        let operator = identity::caller(&request)?.key;
        let request = request.into_inner();
        let (who, role) = match request.who {
            Some(Who::Client(client)) => (name(&client)?, None),
            Some(Who::Operator(new)) => (name(&new.name)?, Some(role(new.role)?)),
            None => return Err(Status::invalid_argument("nobody is named")),
        };
        if matches!(who, MemberName::Client(_)) == role.is_some() {
            return Err(Status::invalid_argument(format!(
                "{who} is not a name for it: a client is COUNTRY/institution, an operator a word"
            )));
        }
        let title = written("a title", &request.title, TITLE_BYTES_MAX)?;
        let why = written("a reason", &request.reason, REASON_BYTES_MAX)?;
        let expires_in = Duration::from_millis(request.expires_in_ms);
        if expires_in.is_zero() || expires_in > INVITATION_TIME_MAX {
            return Err(Status::invalid_argument(format!(
                "an invitation holds for up to {} days; give --expires",
                INVITATION_TIME_MAX.as_secs() / 86_400
            )));
        }
        let failed = |cause: anyhow::Error| {
            error!(cause = format!("{cause:#}"), "no invitation could be made");
            Status::internal("no invitation could be made; the coordinator's log says why")
        };
        let (secret, secret_sha256) = Inviting::secret().map_err(failed)?;
        // The token is made before the invitation is recorded: what cannot be handed over is not made.
        let inviter = (by.clone(), operator);
        let make =
            |expires| self.inviting.token(&who, secret.clone(), expires, (&inviter.0, inviter.1));
        make(Time::default()).map_err(failed)?;
        let what = Asked::Invite { who: who.clone(), title, role, secret_sha256, expires_in };
        let (answer, _) = self.driver.membership(Ask { what, by, why }).await.map_err(status)?;
        let Answer::Invited { expires } = answer else {
            return Err(Status::internal("another answer than to inviting"));
        };
        let token = make(expires).map_err(failed)?;
        Ok(v1::InviteReply { token: token.to_string(), expires_ms: expires.0 })
    }

    pub(super) fn members_now(
        &self,
        request: &Request<v1::ListMembersRequest>,
    ) -> Result<v1::ListMembersReply, Status> {
        identity::viewer(request)?;
        let registry = self.driver.members().now();
        let members = registry.members().map(|(name, member)| shown(&registry, name, member));
        Ok(v1::ListMembersReply { members: members.collect() })
    }

    pub(super) async fn decide(
        &self,
        request: Request<v1::DecideJoinRequest>,
    ) -> Result<v1::DecideJoinReply, Status> {
        let by = identity::admin(&request)?;
        let request = request.into_inner();
        let key = KeyFingerprint(digest("key_fingerprint", &request.key_fingerprint)?);
        let approved = request.approved;
        let why = match approved {
            true => written("a reason", &request.reason, REASON_BYTES_MAX)?,
            false => needed("a reason", &request.reason)?,
        };
        let what = Asked::Decide { who: name(&request.name)?, key, approved };
        self.driver.membership(Ask { what, by, why }).await.map_err(status)?;
        Ok(v1::DecideJoinReply {})
    }

    pub(super) async fn revoke_member(
        &self,
        request: Request<v1::RevokeRequest>,
    ) -> Result<v1::RevokeReply, Status> {
        let by = identity::admin(&request)?;
        let request = request.into_inner();
        let why = needed("a reason", &request.reason)?;
        let who = name(&request.name)?;
        let what = Asked::Revoke { who: who.clone() };
        let (_, runs) = self.driver.membership(Ask { what, by, why }).await.map_err(status)?;
        if let MemberName::Client(client) = &who {
            self.uploads.forget(client).await?;
        }
        Ok(v1::RevokeReply { run_ids: runs.iter().map(ToString::to_string).collect() })
    }

    pub(super) async fn give_role(
        &self,
        request: Request<v1::SetRoleRequest>,
    ) -> Result<v1::SetRoleReply, Status> {
        let by = identity::admin(&request)?;
        let request = request.into_inner();
        let why = needed("a reason", &request.reason)?;
        let what = Asked::SetRole { who: name(&request.name)?, role: role(request.role)? };
        self.driver.membership(Ask { what, by, why }).await.map_err(status)?;
        Ok(v1::SetRoleReply {})
    }
}

/// A member, as operators see it.
fn shown(registry: &Registry, name: &MemberName, member: &Member) -> v1::Member {
    use v1::MemberStanding as Standing;
    let invited: Option<&Invited> = registry.invitation(name);
    let asked = invited.and_then(|invited| invited.asked);
    let standing = match (member.key, asked, invited, &member.revoked) {
        (Some(_), ..) => Standing::Enrolled,
        (None, Some(_), ..) => Standing::Awaiting,
        (None, None, Some(_), _) => Standing::Invited,
        (None, None, None, _) => Standing::Revoked,
    };
    let approved_by: Vec<String> = match invited {
        Some(invited) if member.key.is_none() => {
            registry.approvals(invited).into_iter().map(str::to_owned).collect()
        }
        _ => member.approved_by.clone(),
    };
    let expires = match (member.key, invited) {
        (None, Some(invited)) => invited.expires,
        _ => member.expires,
    };
    let note = match (&member.revoked, &member.refused) {
        (Some(decision), _) if member.key.is_none() && invited.is_none() => {
            Refusal::Revoked(name.clone(), decision.clone()).to_string()
        }
        (_, Some(decision)) => Refusal::Refused(name.clone(), decision.clone()).to_string(),
        _ => String::new(),
    };
    v1::Member {
        name: name.to_string(),
        title: member.title.clone(),
        role: member.role.map_or(v1::OperatorRole::Unspecified, OperatorRole::to_wire).into(),
        standing: standing.into(),
        key_fingerprint: member.key.or(asked).map(|key| key.0.to_vec().into()).unwrap_or_default(),
        expires_ms: expires.0,
        approved_by,
        note,
    }
}
