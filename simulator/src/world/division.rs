//! Which rows are whose: a partition of privacy units, each client's then into what it trains on
//! and what it keeps for testing.

use comity_datasets::{Dataset, HeldOut, Partition};
use comity_federation::Plan;
use comity_privacy::PrivacyUnit;

use super::ClientRows;
use crate::SimulationError;

/// Divides `train` over the clients that `plan` names, in its order; each then keeps what
/// `client_test` says.
///
/// Where the plan protects persons, whole persons are dealt out and kept, by the label of their first
/// row, so that nobody's promise is spread over two institutions and nobody is tested on who was
/// trained on.
///
/// # Errors
/// [`SimulationError::Partition`] if it cannot be divided so.
pub fn divide(
    train: &Dataset,
    partition: &Partition,
    client_test: Option<HeldOut>,
    plan: &Plan,
    seed: u64,
) -> Result<Vec<ClientRows>, SimulationError> {
    if let Some(client_test) = client_test {
        client_test.check()?;
    }
    let persons = match plan.unit() {
        Some(PrivacyUnit::Person { .. }) => train.rows_by_person(),
        _ => None,
    };
    let labels: Vec<u32> = match &persons {
        Some(persons) => persons.iter().map(|rows| train.labels()[rows[0]]).collect(),
        None => train.labels().to_vec(),
    };
    let lots = HeldOut::lots(labels.len(), seed);
    let rows = |units: Vec<usize>| match &persons {
        Some(persons) => {
            let mut rows: Vec<usize> =
                units.into_iter().flat_map(|unit| persons[unit].iter().copied()).collect();
            rows.sort_unstable();
            rows
        }
        None => units,
    };
    let clients = partition.split(&labels, plan.cohort.clients.len(), seed)?;
    Ok(clients
        .into_iter()
        .map(|units| match client_test {
            Some(client_test) => {
                let (train, test) = client_test.split(&units, &labels, &lots);
                ClientRows { train: rows(train), test: rows(test) }
            }
            None => ClientRows { train: rows(units), test: Vec::new() },
        })
        .collect())
}
