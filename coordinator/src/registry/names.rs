//! What members are called, and what operators may do.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use comity_certs::Role;
use comity_federation::ClientId;
use comity_proto::v1;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A member's name: `COUNTRY/institution`, or an operator's, which has no slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MemberName {
    Client(ClientId),
    Operator(String),
}

impl MemberName {
    /// What its certificates say.
    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Client(client) => Role::Client(client.clone()),
            Self::Operator(name) => Role::Operator(name.clone()),
        }
    }

    /// The member with certificates of `role`; the coordinator is none.
    pub(crate) fn of(role: &Role) -> Option<Self> {
        match role {
            Role::Client(client) => Some(Self::Client(client.clone())),
            Role::Operator(name) => Some(Self::Operator(name.clone())),
            Role::Coordinator => None,
        }
    }
}

impl From<ClientId> for MemberName {
    fn from(client: ClientId) -> Self {
        Self::Client(client)
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(client) => client.fmt(f),
            Self::Operator(name) => f.pad(name),
        }
    }
}

impl FromStr for MemberName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return text.parse().map(Self::Client).map_err(|e| format!("{e}"));
        }
        // The same rule as for certificates: what cannot stand in one is no name.
        format!("comity://x/operator/{text}")
            .parse::<comity_certs::Identity>()
            .map(|_| Self::Operator(text.to_owned()))
            .map_err(|_| {
                format!(
                    "operator {text:?} must be 1 to 64 of a-z, 0-9 and '-'; a client is COUNTRY/institution"
                )
            })
    }
}

impl Serialize for MemberName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an operator may do; each may what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum OperatorRole {
    /// See runs and members.
    Viewer,
    /// Launch, govern and end runs, and take their models.
    Launcher,
    /// Say who belongs to the federation.
    Admin,
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Launcher => "launcher",
            Self::Admin => "admin",
        })
    }
}

impl OperatorRole {
    /// As a message says it.
    pub(crate) fn of_wire(role: v1::OperatorRole) -> Option<Self> {
        match role {
            v1::OperatorRole::Unspecified => None,
            v1::OperatorRole::Viewer => Some(Self::Viewer),
            v1::OperatorRole::Launcher => Some(Self::Launcher),
            v1::OperatorRole::Admin => Some(Self::Admin),
        }
    }

    /// For a message.
    pub(crate) fn to_wire(self) -> v1::OperatorRole {
        match self {
            Self::Viewer => v1::OperatorRole::Viewer,
            Self::Launcher => v1::OperatorRole::Launcher,
            Self::Admin => v1::OperatorRole::Admin,
        }
    }
}
