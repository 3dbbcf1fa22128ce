//! Which rows are whose: a partition of privacy units, each client's then into what it trains on
//! and what it keeps for testing.

use std::borrow::Cow;

use comity_datasets::{Groups, HeldOut, Partition};
use comity_federation::Plan;
use comity_privacy::PrivacyUnit;

use super::{ClientRows, TrainData};
use crate::SimulationError;

/// Divides `train` over the clients that `plan` names, in its order; each then keeps what
/// `client_test` says.
///
/// Where the plan protects persons, whole persons are dealt out and kept, by the label of their first
/// row, so that nobody's promise is spread over two institutions and nobody is tested on who was
/// trained on. Only where the data say themselves which rows belong to which client (a column, say),
/// somebody may have rows at several, each of which then answers for its own.
///
/// # Errors
/// [`SimulationError::Partition`] if it cannot be divided so.
pub fn divide(
    train: &TrainData,
    partition: &Partition,
    client_test: Option<HeldOut>,
    plan: &Plan,
    seed: u64,
) -> Result<Vec<ClientRows>, SimulationError> {
    if let Some(client_test) = client_test {
        client_test.check()?;
    }
    let persons = match plan.unit() {
        Some(PrivacyUnit::Person { .. }) => train.data.rows_by_person(),
        _ => None,
    };
    let persons = persons.map(|persons| within_groups(persons, train.groups.as_ref()));
    let (labels, groups) = match &persons {
        Some(persons) => {
            let first: Vec<usize> = persons.iter().map(|rows| rows[0]).collect();
            let labels = first.iter().map(|row| train.data.labels()[*row]).collect();
            let groups = train.groups.as_ref().map(|groups| Cow::Owned(groups.subset(&first)));
            (Cow::Owned(labels), groups)
        }
        None => (Cow::Borrowed(train.data.labels()), train.groups.as_ref().map(Cow::Borrowed)),
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
    let clients = partition.split(&labels, groups.as_deref(), plan.cohort.clients.len(), seed)?;
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

/// The rows of each person within each group.
fn within_groups(persons: Vec<Vec<usize>>, groups: Option<&Groups>) -> Vec<Vec<usize>> {
    let Some(groups) = groups else { return persons };
    let mut units = Vec::with_capacity(persons.len());
    for mut rows in persons {
        rows.sort_by_key(|row| groups.of_row()[*row]);
        units.extend(
            rows.chunk_by(|a, b| groups.of_row()[*a] == groups.of_row()[*b]).map(<[_]>::to_vec),
        );
    }
    units
}
