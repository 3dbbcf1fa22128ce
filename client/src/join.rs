//! What a new node gets written: `client.toml` with comments, and the steward's first policy.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comity_certs::Invitation;
use comity_datasets::{Column, Source, Table};
use comity_federation::{Approval, PinnedOperator};
use serde::Serialize;

use crate::policy_file::{NewPolicy, new_for};

/// What an institution tells `join` about itself.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// The number of records that it makes public, rounded.
    pub records: u64,
    /// The number of persons that it makes public, rounded.
    pub persons: Option<u64>,
    /// Where its data are.
    pub data: NewData,
    /// The data set's budget, (epsilon, delta); `None`: no private run.
    pub budget: Option<(f64, f64)>,
    /// Whether runs without differential privacy are allowed.
    pub without_dp: bool,
    /// Who agrees to plans.
    pub approval: Approval,
}

/// Where the data of a new node are.
#[derive(Clone, Debug)]
pub enum NewData {
    /// Two IDX files.
    Idx {
        /// Images or other features.
        images: PathBuf,
        /// Their labels.
        labels: PathBuf,
    },
    /// A table with names in its first row.
    Csv {
        /// The file.
        path: PathBuf,
        /// Name or number of the column that is the label.
        label: String,
    },
    /// Not said: it has to be written into `client.toml`.
    Unsaid,
}

impl NewData {
    /// The source, with paths that hold wherever the configuration lies.
    fn source(&self) -> anyhow::Result<Source> {
        let whole = |path: &Path| {
            std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
        };
        Ok(match self {
            Self::Idx { images, labels } => {
                Source::Idx { images: whole(images)?, labels: whole(labels)? }
            }
            Self::Csv { path, label } => {
                let label = match label.parse() {
                    Ok(index) => Column::Index(index),
                    Err(_) => Column::Name(label.clone()),
                };
                Source::Csv(Table::new(whole(path)?, label, true))
            }
            Self::Unsaid => {
                Source::Idx { images: "data/images.idx".into(), labels: "data/labels.idx".into() }
            }
        })
    }
}

/// A first `client.toml`.
pub(crate) fn configuration(
    coordinator: &str,
    invitation: &Invitation,
    node: &NewNode,
) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Data {
        source: Source,
    }
    // The library writes one line a key and quotes what has to be.
    let source = toml::Value::try_from(Data { source: node.data.source()? })
        .context("the paths of the data cannot be written as text")?;
    let source = source.get("source").and_then(toml::Value::as_table).map(|table| {
        let keys: Vec<String> =
            table.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        keys.join(", ")
    });
    let source = source.unwrap_or_default();
    let mut text = format!(
        "# The configuration of this node, written by `comity-client join`; docs/samples/client.toml explains every\n\
         # key. Relative paths start at this file.\n\n\
         # Where the coordinator is, and where the node renews its certificate, by itself.\n\
         coordinator = \"{coordinator}\"\nenrolment = \"{}\"\n\n\
         # Certificate, key and root. The key was made here and never leaves.\n\
         certificates = \"certs\"\n\n\
         # Journal, privacy ledger and updates. Keep it: the ledger is in it.\n\
         state = \"state\"\n\n\
         # What this institution allows: the steward's file.\n\
         policy = \"policy.toml\"\n\n\
         # \"cpu\", or an accelerator that this build has, such as \"cuda:0\".\n\
         device = \"cpu\"\n\n[data]\n\
         # What the institution makes public, rounded; plans have to say the same.\n\
         records = {}\n",
        invitation.url, node.records
    );
    if let Some(persons) = node.persons {
        let _ = writeln!(text, "persons = {persons}");
    }
    if matches!(node.data, NewData::Unsaid) {
        text += "# Write here where the data are, then run `comity-client check`.\n";
    }
    let _ = writeln!(text, "source = {{ {source} }}");
    Ok(text)
}

/// A first `policy.toml`: it takes the orders of the operator who invited, and allows what `node` says.
pub(crate) fn policy(invitation: &Invitation, node: &NewNode) -> String {
    let operators =
        vec![PinnedOperator { name: invitation.operator_name.clone(), key: invitation.operator }];
    let (budget, without_dp, approval) = (node.budget, node.without_dp, node.approval);
    new_for(&NewPolicy { operators, budget, without_dp, approval })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use comity_federation::{KeyFingerprint, Time};

    #[test]
    fn what_join_writes_is_a_configuration_whatever_the_files_are_called() {
        let invitation = Invitation {
            url: "https://c.example.org:7444".to_owned(),
            root: [1; 32],
            secret: [2; 32].into(),
            identity: "comity://demo/client/VN/hanoi-lab".parse().unwrap(),
            expires: Time(0),
            operator_name: "alice".to_owned(),
            operator: KeyFingerprint([3; 32]),
        };
        let node = |data| NewNode {
            records: 100,
            persons: Some(10),
            data,
            budget: None,
            without_dp: true,
            approval: Approval::Ask,
        };
        let odd = PathBuf::from("/data/a \"b\" \\ c = 1.csv");
        for (data, expected) in [
            (NewData::Unsaid, "data/images.idx".into()),
            (NewData::Csv { path: odd.clone(), label: "result".to_owned() }, odd.clone()),
            (NewData::Idx { images: odd.clone(), labels: "/l".into() }, odd),
        ] {
            let text = configuration("https://c.example.org:7443", &invitation, &node(data));
            let config: Config = toml::from_str(&text.unwrap()).unwrap();
            assert_eq!(config.enrolment, Some(invitation.url.clone()));
            assert_eq!((config.data.records, config.data.persons), (100, Some(10)));
            let (Source::Idx { images: path, .. } | Source::Csv(Table { path, .. })) =
                config.data.source;
            assert_eq!(path, expected);
        }
        let policy = policy(&invitation, &node(NewData::Unsaid));
        assert!(policy.contains("alice") && policy.contains(&invitation.operator.to_string()));
    }
}
