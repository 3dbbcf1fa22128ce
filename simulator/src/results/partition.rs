//! How the training rows lie over the clients: what the picture of the partition is drawn from.

use comity_federation::ClientId;
use serde::{Deserialize, Serialize};

use crate::FederationData;

/// Rows and labels of every client, in the plan's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionTable {
    /// How many labels there are.
    pub n_classes: usize,
    /// One entry a client.
    pub clients: Vec<ClientLabels>,
}

/// What one client holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLabels {
    /// Who.
    pub client: ClientId,
    /// How many rows have each label, from label 0; `[n_classes]`.
    pub by_label: Vec<usize>,
}

impl ClientLabels {
    /// All rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.by_label.iter().sum()
    }
}

impl PartitionTable {
    /// Of the training rows of `data`.
    #[must_use]
    pub fn of(data: &FederationData) -> Self {
        let clients = data.clients().enumerate().map(|(index, client)| ClientLabels {
            client: client.clone(),
            by_label: data.label_counts(index),
        });
        let clients = clients.collect();
        Self { n_classes: data.test.n_classes(), clients }
    }

    /// As JSON, a client a line, so that thousands of clients stay readable and short.
    #[must_use]
    pub(super) fn to_json(&self) -> String {
        let clients: Vec<String> = self
            .clients
            .iter()
            .map(|client| serde_json::to_string(client).expect("a client is plain data"))
            .collect();
        format!(
            "{{\"n_classes\": {}, \"clients\": [\n{}\n]}}\n",
            self.n_classes,
            clients.join(",\n")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back() {
        let client = |id: &str, by_label: &[usize]| ClientLabels {
            client: id.parse().unwrap(),
            by_label: by_label.to_vec(),
        };
        let table = PartitionTable {
            n_classes: 2,
            clients: vec![client("KR/a", &[1, 2]), client("JP/b", &[0, 5])],
        };
        assert_eq!(table.clients[1].n_rows(), 5);
        let read: PartitionTable = serde_json::from_str(&table.to_json()).unwrap();
        assert_eq!(read, table);
    }
}
