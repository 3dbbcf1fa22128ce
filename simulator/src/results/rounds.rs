//! Rounds and clients as rows of tables, and back.

use std::collections::{BTreeMap, BTreeSet};

use comity_federation::{Country, Plan};

use super::table::{Cell, Column, Kind};
use crate::{ClientRound, Fairness, RoundScore};

/// The countries of the plan's clients, in the order of the columns.
pub(super) fn countries(plan: &Plan) -> Vec<Country> {
    let all: BTreeSet<Country> = plan.cohort.clients.iter().map(|c| c.id.country()).collect();
    all.into_iter().collect()
}

/// Columns of the table of rounds.
pub(super) fn round_columns(countries: &[Country]) -> Vec<Column> {
    use Kind::{Integer, Real, Text};
    let mut columns: Vec<(String, Kind)> = [
        ("round", Integer),
        ("accuracy", Real),
        ("loss", Real),
        ("seconds", Real),
        ("clock_s", Real),
        ("backdoor", Real),
        ("n_contributions", Integer),
        ("n_missing", Integer),
        ("fairness_n_clients", Integer),
        ("fairness_mean", Real),
        ("fairness_std", Real),
        ("fairness_min", Real),
        ("fairness_tenth", Real),
        ("fairness_max", Real),
    ]
    .map(|(name, kind)| (name.to_owned(), kind))
    .to_vec();
    columns.extend(countries.iter().map(|country| (format!("epsilon_{country}"), Real)));
    columns.extend(countries.iter().map(|country| (format!("bytes_{country}"), Integer)));
    columns.push(("model".to_owned(), Text));
    columns
}

/// The row of `score`.
pub(super) fn round_cells(score: &RoundScore, countries: &[Country]) -> Vec<Cell> {
    let fairness = |of: fn(&Fairness) -> f64| Cell::Real(score.fairness.as_ref().map(of));
    let mut cells = vec![
        integer(u64::from(score.round)),
        Cell::Real(Some(score.accuracy)),
        Cell::Real(Some(score.loss)),
        Cell::Real(Some(score.seconds)),
        Cell::Real(Some(score.clock_s)),
        Cell::Real(score.backdoor),
        integer(u64::from(score.n_contributions)),
        integer(u64::from(score.n_missing)),
        Cell::Integer(score.fairness.map(|fairness| i64::from(fairness.n_clients))),
        fairness(|f| f.mean),
        fairness(|f| f.std),
        fairness(|f| f.min),
        fairness(|f| f.tenth),
        fairness(|f| f.max),
    ];
    let epsilon = |country| score.epsilon.get(country).copied().flatten();
    cells.extend(countries.iter().map(|country| Cell::Real(epsilon(country))));
    let bytes = |country| score.bytes.get(country).copied().unwrap_or(0);
    cells.extend(countries.iter().map(|country| integer(bytes(country))));
    cells.push(Cell::Text(Some(score.model.to_string())));
    cells
}

/// The score of a row; `None` if the row lacks what every round has.
pub(super) fn round_from(cells: &[Cell], countries: &[Country]) -> Option<RoundScore> {
    let mut cells = cells.iter();
    let mut real = || match cells.next()? {
        Cell::Real(value) => Some(*value),
        Cell::Integer(value) => Some(value.map(|value| value as f64)),
        Cell::Text(_) => None,
    };
    let (round, accuracy, loss) = (real()??, real()??, real()??);
    let (seconds, clock_s) = (real()??, real()??);
    let backdoor = real()?;
    let (n_contributions, n_missing) = (real()??, real()??);
    let [n_clients, mean, std, min, tenth, max] =
        [real()?, real()?, real()?, real()?, real()?, real()?];
    let fairness = match (n_clients, mean, std, min, tenth, max) {
        (Some(n), Some(mean), Some(std), Some(min), Some(tenth), Some(max)) => {
            Some(Fairness { n_clients: n as u32, mean, std, min, tenth, max })
        }
        _ => None,
    };
    let mut epsilon = BTreeMap::new();
    for country in countries {
        epsilon.insert(*country, real()?);
    }
    let mut bytes = BTreeMap::new();
    for country in countries {
        match real()?? as u64 {
            // Only who sent something has an entry.
            0 => {}
            sent => drop(bytes.insert(*country, sent)),
        }
    }
    let Cell::Text(Some(model)) = cells.next()? else { return None };
    Some(RoundScore {
        round: round as u32,
        accuracy,
        loss,
        model: model.parse().ok()?,
        seconds,
        clock_s,
        n_contributions: n_contributions as u32,
        n_missing: n_missing as u32,
        epsilon,
        bytes,
        fairness,
        backdoor,
    })
}

/// Columns of the table of clients.
pub(super) fn client_columns() -> Vec<Column> {
    use Kind::{Integer, Real, Text};
    [
        ("round", Integer),
        ("client", Text),
        ("missing", Text),
        ("staleness", Integer),
        ("bytes", Integer),
        ("epsilon", Real),
        ("arrived_s", Real),
        ("accuracy", Real),
        ("loss", Real),
    ]
    .map(|(name, kind)| (name.to_owned(), kind))
    .to_vec()
}

/// The row of `client`.
pub(super) fn client_cells(client: &ClientRound) -> Vec<Cell> {
    // A row is a line, so that a file that was cut off can be cut at a line.
    let one_line = |reason: &String| reason.replace(['\n', '\r'], " ");
    vec![
        integer(u64::from(client.round)),
        Cell::Text(Some(client.client.to_string())),
        Cell::Text(client.missing.as_ref().map(one_line)),
        integer(u64::from(client.staleness)),
        integer(client.bytes),
        Cell::Real(client.epsilon),
        Cell::Real(client.arrived_s),
        Cell::Real(client.accuracy),
        Cell::Real(client.loss),
    ]
}

fn integer(value: u64) -> Cell {
    Cell::Integer(i64::try_from(value).ok())
}

/// What TensorBoard is shown of `score`, `bytes_before` having been sent before its round.
pub(super) fn scalars(score: &RoundScore, bytes_before: u64) -> Vec<(String, f64)> {
    let sent: u64 = score.bytes.values().sum();
    let mut scalars = vec![
        ("test/accuracy".to_owned(), score.accuracy),
        ("test/loss".to_owned(), score.loss),
        ("time/seconds".to_owned(), score.seconds),
        ("time/clock_s".to_owned(), score.clock_s),
        ("clients/contributions".to_owned(), f64::from(score.n_contributions)),
        ("clients/missing".to_owned(), f64::from(score.n_missing)),
        ("bytes/all".to_owned(), (bytes_before + sent) as f64),
    ];
    scalars.extend(score.backdoor.map(|share| ("test/backdoor".to_owned(), share)));
    for (country, epsilon) in &score.epsilon {
        scalars.extend(epsilon.map(|epsilon| (format!("epsilon/{country}"), epsilon)));
    }
    if let Some(Fairness { mean, std, min, tenth, max, .. }) = score.fairness {
        for (name, value) in
            [("mean", mean), ("std", std), ("min", min), ("tenth", tenth), ("max", max)]
        {
            scalars.push((format!("fairness/{name}"), value));
        }
    }
    scalars
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::samples;

    #[test]
    fn a_round_survives_its_row() {
        let countries = countries(&samples::plan());
        for score in samples::rounds(4) {
            let cells = round_cells(&score, &countries);
            assert_eq!(cells.len(), round_columns(&countries).len());
            for ((name, kind), cell) in round_columns(&countries).iter().zip(&cells) {
                let read = Cell::from_field(*kind, &cell.to_field());
                assert_eq!(read.as_ref(), Some(cell), "{name}");
            }
            assert_eq!(round_from(&cells, &countries), Some(score));
        }
    }

    #[test]
    fn a_clients_row_is_one_line() {
        let mut client = samples::clients(1).remove(0);
        client.missing = Some("diverged:\nloss is NaN".to_owned());
        let cells = client_cells(&client);
        assert_eq!(cells.len(), client_columns().len());
        assert_eq!(cells[2], Cell::Text(Some("diverged: loss is NaN".to_owned())));
    }

    #[test]
    fn tensorboard_sees_bytes_add_up() {
        let score = &samples::rounds(1)[0];
        let scalars: BTreeMap<String, f64> = scalars(score, 1000).into_iter().collect();
        let sent: u64 = score.bytes.values().sum();
        assert_eq!(scalars["bytes/all"], 1000.0 + sent as f64);
        assert_eq!(scalars["test/accuracy"], score.accuracy);
    }
}
