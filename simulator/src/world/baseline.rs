//! What a federation is compared with: all rows in one place, or one client by itself.

use comity_federation::{ClientId, NamedClient, Plan};
use serde::{Deserialize, Serialize};

use super::ClientRows;
use crate::SimulationError;

/// Who trains instead of the federation, on the rows that the partition gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Baseline {
    /// One client with the rows of all.
    Pooled,
    /// Only this client.
    Alone(ClientId),
}

impl Baseline {
    /// `plan` for this one client, whose contribution is then the whole round.
    pub(super) fn plan(&self, plan: &Plan) -> Result<Plan, SimulationError> {
        let clients = &plan.cohort.clients;
        if clients.len() == 1 {
            return Err(SimulationError::World(
                "a baseline is of the rows of a federation, and the plan names one client only; give the \
                 plan of the federation (that in a run's folder is already for the baseline)"
                    .to_owned(),
            ));
        }
        let client = match self {
            Self::Alone(client) => clients[self.place(client, plan)?].clone(),
            Self::Pooled => NamedClient {
                id: ClientId::new(clients[0].id.country(), "pooled").expect("a valid name"),
                records: clients.iter().map(|client| client.records).sum(),
                persons: clients.iter().map(|client| client.persons).sum(),
            },
        };
        let mut plan = plan.clone();
        plan.cohort.clients = vec![client];
        plan.cohort.min_clients = 1;
        plan.cohort.min_countries = 1;
        plan.cohort.sample = None;
        // Parsing is what validates.
        Ok(Plan::from_json(&plan.to_json())?)
    }

    /// The rows of this one client, of `rows` by client of `plan`.
    pub(super) fn rows(
        &self,
        plan: &Plan,
        mut rows: Vec<ClientRows>,
    ) -> Result<Vec<ClientRows>, SimulationError> {
        match self {
            Self::Alone(client) => Ok(vec![rows.swap_remove(self.place(client, plan)?)]),
            Self::Pooled => {
                let mut all = ClientRows::default();
                for rows in rows {
                    all.train.extend(rows.train);
                    all.test.extend(rows.test);
                }
                all.train.sort_unstable();
                all.test.sort_unstable();
                Ok(vec![all])
            }
        }
    }

    fn place(&self, client: &ClientId, plan: &Plan) -> Result<usize, SimulationError> {
        let mut clients = plan.cohort.clients.iter();
        clients
            .position(|named| named.id == *client)
            .ok_or_else(|| SimulationError::UnknownClient { client: client.clone() })
    }
}
