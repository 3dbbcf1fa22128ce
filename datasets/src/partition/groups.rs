//! Splits by what the data say themselves: a column of a table, or the file that a row comes from.

use std::collections::BTreeMap;

use chacha20::ChaCha20Rng;

use super::PartitionError;
use super::draws::shuffle;

/// Which rows belong together.
#[derive(Clone, PartialEq, Eq)]
pub struct Groups {
    names: Vec<String>,
    of_row: Vec<u32>,
}

/// Shows sizes only: a column's values are rows' values.
impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Groups").field("n_groups", &self.names.len()).finish_non_exhaustive()
    }
}

impl Groups {
    /// `names[of_row[row]]` is the group of each row.
    ///
    /// # Panics
    /// If a row's group has no name.
    #[must_use]
    pub fn new(names: Vec<String>, of_row: Vec<u32>) -> Self {
        assert!(of_row.iter().all(|group| (*group as usize) < names.len()));
        Self { names, of_row }
    }

    /// These groups, in the order of their names: of numbers by value, else of texts.
    #[must_use]
    pub fn sorted(self) -> Self {
        let numbers: Option<Vec<f64>> = self.names.iter().map(|name| name.parse().ok()).collect();
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        match numbers {
            Some(numbers) => order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b])),
            None => order.sort_by(|a, b| self.names[*a].cmp(&self.names[*b])),
        }
        let mut place = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            place[*old] = new as u32;
        }
        Self {
            names: order.into_iter().map(|old| self.names[old].clone()).collect(),
            of_row: self.of_row.into_iter().map(|group| place[group as usize]).collect(),
        }
    }

    /// The rows of all `parts` after one another; groups of one name are one, and sorted as by
    /// [`sorted`](Self::sorted).
    #[must_use]
    pub fn merged(parts: Vec<Self>) -> Self {
        let mut known = BTreeMap::<String, u32>::new();
        let mut of_row = Vec::new();
        for part in parts {
            let numbers: Vec<u32> = part
                .names
                .into_iter()
                .map(|name| {
                    let next = known.len() as u32;
                    *known.entry(name).or_insert(next)
                })
                .collect();
            of_row.extend(part.of_row.into_iter().map(|group| numbers[group as usize]));
        }
        let mut names = vec![String::new(); known.len()];
        for (name, number) in known {
            names[number as usize] = name;
        }
        Self::new(names, of_row).sorted()
    }

    /// What the groups are called.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The group of each row, an index into [`names`](Self::names), `[n_rows]`: private.
    #[must_use]
    pub fn of_row(&self) -> &[u32] {
        &self.of_row
    }

    /// The rows of each group, `[n_groups][n_rows]`, ascending.
    #[must_use]
    pub fn rows(&self) -> Vec<Vec<usize>> {
        let mut rows = vec![Vec::new(); self.names.len()];
        for (row, group) in self.of_row.iter().enumerate() {
            rows[*group as usize].push(row);
        }
        rows
    }

    /// The groups of `rows`, in that order.
    #[must_use]
    pub fn subset(&self, rows: &[usize]) -> Self {
        let of_row = rows.iter().map(|row| self.of_row[*row]).collect();
        Self { names: self.names.clone(), of_row }
    }

    /// Each group is one client, in their order.
    pub(super) fn each(
        &self,
        what: &'static str,
        advice: &'static str,
        n_clients: usize,
    ) -> Result<Vec<Vec<usize>>, PartitionError> {
        let n_groups = self.names.len();
        if n_groups == n_clients {
            return Ok(self.rows());
        }
        Err(PartitionError::Groups { what, n_groups, n_clients, advice })
    }

    /// Each value is one client, or with `dealt` the values are shuffled and dealt out.
    pub(super) fn by_value(
        &self,
        dealt: bool,
        n_clients: usize,
        rng: &mut ChaCha20Rng,
    ) -> Result<Vec<Vec<usize>>, PartitionError> {
        let n_values = self.names.len();
        let what = "values of the column";
        if !dealt || n_values < n_clients {
            let advice = match n_values < n_clients {
                true => "name fewer clients in the plan, or split by another column",
                false => {
                    "name one client in the plan for each value, list the values of each client \
                     (values = [[\"a\", \"b\"], [\"c\"]]), or have them dealt out (dealt = true)"
                }
            };
            return self.each(what, advice, n_clients);
        }
        let mut values: Vec<usize> = (0..n_values).collect();
        shuffle(&mut values, rng);
        let mut client_of = vec![0; n_values];
        for (position, value) in values.into_iter().enumerate() {
            client_of[value] = position % n_clients;
        }
        Ok(self.together(&client_of, n_clients))
    }

    /// The values of each client, as listed.
    pub(super) fn listed(
        &self,
        values: &[Vec<String>],
        n_clients: usize,
    ) -> Result<Vec<Vec<usize>>, PartitionError> {
        if values.len() != n_clients {
            return Err(PartitionError::Groups {
                what: "lists of values",
                n_groups: values.len(),
                n_clients,
                advice: "give `values` one list for each client of the plan, in its order",
            });
        }
        let known: BTreeMap<&str, usize> =
            self.names.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let mut client_of = vec![None; self.names.len()];
        for (client, values) in values.iter().enumerate() {
            for value in values {
                let problem = |problem| PartitionError::Value { value: value.clone(), problem };
                let index = known.get(value.as_str()).ok_or(problem("is not in the column"))?;
                if client_of[*index].replace(client).is_some() {
                    return Err(problem("is listed twice"));
                }
            }
            if values.is_empty() {
                let (n_clients, n_rows) = (n_clients, self.of_row.len());
                return Err(PartitionError::TooFewRows { n_clients, rows_min: 1, n_rows });
            }
        }
        let n_unlisted = client_of.iter().filter(|client| client.is_none()).count();
        if n_unlisted > 0 {
            return Err(PartitionError::Unlisted { n_values: n_unlisted });
        }
        let client_of: Vec<usize> = client_of.into_iter().flatten().collect();
        Ok(self.together(&client_of, n_clients))
    }

    fn together(&self, client_of: &[usize], n_clients: usize) -> Vec<Vec<usize>> {
        let mut clients = vec![Vec::new(); n_clients];
        for (row, group) in self.of_row.iter().enumerate() {
            clients[client_of[*group as usize]].push(row);
        }
        clients
    }
}
