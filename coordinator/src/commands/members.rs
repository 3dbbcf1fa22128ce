//! `comity-coordinator invite`, `members …` and `revoke`: who belongs to the federation.

use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{LineStyle, Table};
use comity_certs::date_of;
use comity_federation::{ClientId, Country, KeyFingerprint, Time};
use comity_proto::v1::{self, MemberStanding, invite_request::Who};
use serde::Serialize;
use serde_json::json;

use super::operator::{open, refused};
use super::run::block_on;
use crate::config::Home;
use crate::registry::OperatorRole;

/// Whom to invite.
pub enum Invitee {
    /// An institution's node.
    Institution {
        /// Where it is.
        country: Country,
        /// Its name, as people write it.
        title: String,
        /// Its short name; made of the title if absent.
        id: Option<String>,
    },
    /// An operator.
    Operator {
        /// Its name.
        name: String,
        /// What it may do.
        role: OperatorRole,
    },
}

/// The short name of an institution: its ASCII letters, lower-case, and digits, with `-` for what is between.
fn slug(title: &str) -> anyhow::Result<String> {
    if !title.is_ascii() {
        bail!(
            "{title:?} has letters beyond a-z, and the short name stands in certificates and files; give one with \
             --id, such as --id hanoi-lab (the title is kept as it is)"
        );
    }
    let words = title
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase);
    Ok(words.collect::<Vec<_>>().join("-"))
}

/// Prints one token, alone on stdout.
pub fn invite(
    home: &Home,
    invitee: Invitee,
    expires: Duration,
    reason: String,
) -> anyhow::Result<()> {
    let (who, title, name) = match invitee {
        Invitee::Institution { country, title, id } => {
            let id = id.map_or_else(|| slug(&title), Ok)?;
            let client: ClientId = format!("{country}/{id}").parse()?;
            (Who::Client(client.to_string()), title, client.to_string())
        }
        Invitee::Operator { name, role } => {
            let role = role.to_wire().into();
            let operator = v1::NewOperator { name: name.clone(), role };
            (Who::Operator(operator), name.clone(), format!("operator {name}"))
        }
    };
    let expires_in_ms = u64::try_from(expires.as_millis()).context("--expires is too long")?;
    let request = v1::InviteRequest { who: Some(who), title, expires_in_ms, reason };
    let reply = block_on(async {
        Ok(open(home).await?.invite(request).await.map_err(refused)?.into_inner())
    })?;
    eprintln!(
        "the invitation of {name} until {}; whoever has it can join as them, once: hand it over by a way that you trust",
        date_of(Time(reply.expires_ms))
    );
    println!("{}", reply.token);
    Ok(())
}

/// A member, as it is listed.
#[derive(Serialize)]
struct Line {
    name: String,
    title: String,
    role: Option<OperatorRole>,
    standing: &'static str,
    key: Option<KeyFingerprint>,
    expires_ms: Time,
    approved_by: Vec<String>,
    note: String,
}

impl Line {
    fn of(member: v1::Member) -> Self {
        let standing = match member.standing() {
            MemberStanding::Unspecified => "unknown",
            MemberStanding::Invited => "invited",
            MemberStanding::Awaiting => "awaits approval",
            MemberStanding::Enrolled => "enrolled",
            MemberStanding::Revoked if member.note.contains("was refused") => "refused",
            MemberStanding::Revoked => "revoked",
        };
        let key = <[u8; 32]>::try_from(&member.key_fingerprint[..]).ok().map(KeyFingerprint);
        Self {
            role: OperatorRole::of_wire(member.role()),
            name: member.name,
            title: member.title,
            standing,
            key,
            expires_ms: Time(member.expires_ms),
            approved_by: member.approved_by,
            note: member.note,
        }
    }

    fn what(&self) -> String {
        self.role.map_or("node".to_owned(), |role| role.to_string())
    }
}

fn members(home: &Home) -> anyhow::Result<Vec<Line>> {
    let reply = block_on(async {
        let request = v1::ListMembersRequest {};
        Ok(open(home).await?.list_members(request).await.map_err(refused)?.into_inner())
    })?;
    Ok(reply.members.into_iter().map(Line::of).collect())
}

/// Lists all members.
pub fn list(home: &Home, as_json: bool) -> anyhow::Result<()> {
    let members = members(home)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&members)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["member", "what", "standing", "until", "key", "title"]);
    for member in members {
        table.add_row([
            member.name.clone(),
            member.what(),
            member.standing.to_owned(),
            date_of(member.expires_ms),
            member.key.map_or("-".to_owned(), |key| key.short()),
            member.title,
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Shows one member.
pub fn show(home: &Home, name: &str, as_json: bool) -> anyhow::Result<()> {
    let found = members(home)?.into_iter().find(|member| member.name == name);
    let member =
        found.with_context(|| format!("there is no member {name}; `members list` shows all"))?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&member)?);
        return Ok(());
    }
    println!("{}   {}, {}", member.name, member.what(), member.standing);
    println!("  title        {}", member.title);
    println!("  key          {}", member.key.map_or("-".to_owned(), |key| key.to_string()));
    println!("  until        {}", date_of(member.expires_ms));
    println!("  approved by  {}", member.approved_by.join(", "));
    if !member.note.is_empty() {
        println!("  note         {}", member.note);
    }
    Ok(())
}

/// Approves or refuses one that asks to join with `key`; `None`: whatever key it shows, to refuse it.
pub fn decide(
    home: &Home,
    name: String,
    key: Option<KeyFingerprint>,
    approved: bool,
    reason: String,
) -> anyhow::Result<()> {
    let key = match key {
        Some(key) => key,
        None => members(home)?
            .into_iter()
            .find(|member| member.name == name)
            .and_then(|member| member.key)
            .with_context(|| format!("nobody asks to join as {name}"))?,
    };
    let key_fingerprint = key.0.to_vec().into();
    let request = v1::DecideJoinRequest { name: name.clone(), key_fingerprint, approved, reason };
    block_on(async { open(home).await?.decide_join(request).await.map_err(refused) })?;
    eprintln!("{name} {}", if approved { "approved" } else { "refused" });
    Ok(())
}

/// Ends a membership at once.
pub fn revoke(home: &Home, name: String, reason: String, as_json: bool) -> anyhow::Result<()> {
    let request = v1::RevokeRequest { name: name.clone(), reason };
    let reply = block_on(async {
        Ok(open(home).await?.revoke(request).await.map_err(refused)?.into_inner())
    })?;
    if as_json {
        println!("{}", json!({ "member": name, "runs": reply.run_ids }));
        return Ok(());
    }
    eprintln!("{name} revoked; its connections are ended");
    for run in reply.run_ids {
        eprintln!("  excluded from run {run}");
    }
    Ok(())
}

/// Says what an operator may do from now on.
pub fn role(home: &Home, name: String, role: OperatorRole, reason: String) -> anyhow::Result<()> {
    let request = v1::SetRoleRequest { name: name.clone(), role: role.to_wire().into(), reason };
    block_on(async { open(home).await?.set_role(request).await.map_err(refused) })?;
    eprintln!("{name} is a {role} now");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::slug;

    #[test]
    fn a_short_name_is_made_of_ascii_letters_only() {
        assert_eq!(slug("Hanoi  Lab (No. 2)").unwrap(), "hanoi-lab-no-2");
        let error = slug("Bệnh viện Bạch Mai").unwrap_err().to_string();
        assert!(error.contains("--id"), "{error}");
    }
}
