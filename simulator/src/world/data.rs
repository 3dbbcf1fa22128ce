//! The data of a federation: one data set that its clients share, and which rows are whose.
//!
//! A client's rows are gathered when it needs them and dropped afterwards, so that memory does not
//! hold everything twice, whatever the number of clients.

use std::borrow::Cow;

use comity_datasets::Dataset;
use comity_federation::{ClientId, Plan};
use comity_privacy::PrivacyUnit;

use crate::SimulationError;

/// The data of every client, and what models are scored on.
#[derive(Clone, Debug)]
pub struct FederationData {
    /// Public; on which every round's model is scored.
    pub test: Dataset,
    shared: Dataset,
    clients: Vec<Client>,
}

/// Which rows of the shared data set are one client's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientRows {
    /// It trains on them; ascending.
    pub train: Vec<usize>,
    /// It keeps them for testing and never trains on them; ascending, may be empty.
    pub test: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Client {
    id: ClientId,
    train: Rows,
    test: Rows,
}

/// Where a client's rows are.
#[derive(Clone, Debug)]
enum Rows {
    /// In the shared data set.
    Shared(Vec<usize>),
    /// In a data set of the client's own.
    Own(Dataset),
}

impl FederationData {
    /// `rows` of `shared`, one for each client of `plan` in its order, and the public `test` set.
    ///
    /// Where the model begins with layers that are computed once a data set, every client gets a data
    /// set of its own, because what was computed is kept beside it.
    ///
    /// # Errors
    /// [`SimulationError::Shards`] unless there are as many `rows` as clients.
    ///
    /// # Panics
    /// If a row is not below the length of `shared`.
    pub fn new(
        plan: &Plan,
        shared: Dataset,
        rows: Vec<ClientRows>,
        test: Dataset,
    ) -> Result<Self, SimulationError> {
        let named = &plan.cohort.clients;
        if named.len() != rows.len() {
            return Err(SimulationError::Shards { in_plan: named.len(), in_data: rows.len() });
        }
        let keep = plan.model.n_front() > 0;
        let place = |rows: Vec<usize>| match keep {
            true => Rows::Own(shared.subset(&rows)),
            false => Rows::Shared(rows),
        };
        let clients = named
            .iter()
            .zip(rows)
            .map(|(named, rows)| Client {
                id: named.id.clone(),
                train: place(rows.train),
                test: place(rows.test),
            })
            .collect();
        let shared = if keep { shared.subset(&[]) } else { shared };
        Ok(Self { test, shared, clients })
    }

    /// Clients with a data set each, none of which is kept for testing.
    #[must_use]
    pub fn of_shards(shards: Vec<(ClientId, Dataset)>, test: Dataset) -> Self {
        let clients = shards
            .into_iter()
            .map(|(id, data)| Client { id, train: Rows::Own(data), test: Rows::Shared(vec![]) })
            .collect();
        Self { shared: test.subset(&[]), test, clients }
    }

    /// BLAKE3 of everybody's records and of the test set, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("comity federation data v1");
        hasher.update(&self.test.digest()).update(&self.shared.digest());
        for client in &self.clients {
            for rows in [&client.train, &client.test] {
                match rows {
                    Rows::Own(data) => _ = hasher.update(&data.digest()),
                    Rows::Shared(rows) => {
                        hasher.update(&(rows.len() as u64).to_le_bytes());
                        rows.iter().for_each(|row| _ = hasher.update(&row.to_le_bytes()));
                    }
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// How many clients there are.
    #[must_use]
    pub fn n_clients(&self) -> usize {
        self.clients.len()
    }

    /// The clients, in the plan's order.
    pub fn clients(&self) -> impl ExactSizeIterator<Item = &ClientId> {
        self.clients.iter().map(|client| &client.id)
    }

    /// How many examples the client at `index` trains on.
    ///
    /// # Panics
    /// If there is no such client; so do the other functions that take an `index`.
    #[must_use]
    pub fn n_rows(&self, index: usize) -> usize {
        self.clients[index].train.len()
    }

    /// What the client at `index` trains on, gathered now unless it has a data set of its own.
    #[must_use]
    pub fn shard(&self, index: usize) -> Cow<'_, Dataset> {
        self.clients[index].train.gather(&self.shared)
    }

    /// How many examples of each class the client at `index` trains on, `[n_classes]`.
    #[must_use]
    pub fn label_counts(&self, index: usize) -> Vec<usize> {
        match &self.clients[index].train {
            Rows::Shared(rows) => self.shared.label_counts_of(rows),
            Rows::Own(data) => data.label_counts(),
        }
    }

    /// Whether any client keeps records for testing.
    #[must_use]
    pub fn has_client_tests(&self) -> bool {
        self.clients.iter().any(|client| client.test.len() > 0)
    }

    /// What the client at `index` keeps for testing, gathered now; `None` if that is nothing.
    #[must_use]
    pub fn client_test(&self, index: usize) -> Option<Cow<'_, Dataset>> {
        let test = &self.clients[index].test;
        (test.len() > 0).then(|| test.gather(&self.shared))
    }

    /// `plan` with the numbers of records, and of persons where they are protected, that its clients
    /// really train on.
    ///
    /// # Errors
    /// [`SimulationError::Plan`] if the plan is not valid with them.
    pub(super) fn declare(&self, plan: &Plan) -> Result<Plan, SimulationError> {
        let mut plan = plan.clone();
        let protects_persons = matches!(plan.unit(), Some(PrivacyUnit::Person { .. }));
        for (index, named) in plan.cohort.clients.iter_mut().enumerate() {
            named.records = self.n_rows(index) as u64;
            if protects_persons {
                let persons = self.shard(index).rows_by_person();
                named.persons = persons.map(|persons| persons.len() as u64);
            }
        }
        // Parsing is what validates.
        Ok(Plan::from_json(&plan.to_json())?)
    }

    /// Gives the client at `index` other training data.
    pub fn set_shard(&mut self, index: usize, data: Dataset) {
        self.clients[index].train = Rows::Own(data);
    }
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Shared(rows) => rows.len(),
            Self::Own(data) => data.len(),
        }
    }

    fn gather<'a>(&'a self, shared: &Dataset) -> Cow<'a, Dataset> {
        match self {
            Self::Shared(rows) => Cow::Owned(shared.subset(rows)),
            Self::Own(data) => Cow::Borrowed(data),
        }
    }
}
