//! Examples in memory, as compact as their files, and batches made from them.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::derived::{Derived, from_bfloat16};
use crate::{Contract, DataError, Normalise};

/// Features as stored: one byte, two or four each.
#[derive(Clone, Debug)]
pub(crate) enum Features {
    Bytes(Vec<u8>),
    /// bfloat16: the upper half of an `f32`.
    Halves(Vec<u16>),
    /// NaN marks a missing value.
    Reals(Vec<f32>),
}

/// A client's examples, checked against the plan's [`Contract`].
#[derive(Clone)]
pub struct Dataset {
    features: Features,
    labels: Vec<u32>,
    /// Whose row it is, numbered from 0 without a gap.
    persons: Option<Vec<u32>>,
    shape: Vec<usize>,
    n_features: usize,
    n_classes: usize,
    pub(crate) derived: Derived,
}

/// Shows sizes only, so that no row can reach a log.
impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset")
            .field("shape", &self.shape)
            .field("n_classes", &self.n_classes)
            .finish_non_exhaustive()
    }
}

/// Examples ready for a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[n, shape…]`, normalised.
    pub features: Vec<f32>,
    /// `[n]`, each below the number of classes.
    pub labels: Vec<u32>,
}

impl Dataset {
    /// Examples of bytes: `features` is `[n, shape…]`, `labels` is `[n]`.
    ///
    /// # Errors
    /// [`DataError::Contract`] if `contract` is not usable, the lengths do not fit it, or a label
    /// is not below `n_classes`.
    pub fn from_bytes(
        contract: &Contract,
        features: Vec<u8>,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        let n = features.len();
        Self::checked(contract, Features::Bytes(features), n, labels)
    }

    /// Examples of real numbers: `features` is `[n, shape…]`, NaN where a value is missing;
    /// `labels` is `[n]`.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes); also if a feature is infinite.
    pub fn from_reals(
        contract: &Contract,
        features: Vec<f32>,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        if features.iter().any(|x| x.is_infinite()) {
            return Err(DataError::Contract { reason: "a feature is infinite" });
        }
        let n = features.len();
        Self::checked(contract, Features::Reals(features), n, labels)
    }

    fn checked(
        contract: &Contract,
        features: Features,
        n_values: usize,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        let n_features = contract.n_features()?;
        if labels.len().checked_mul(n_features) != Some(n_values) {
            return Err(DataError::Contract { reason: "features and labels differ in number" });
        }
        if labels.iter().any(|label| *label as usize >= contract.n_classes) {
            return Err(DataError::Contract { reason: "a label is not below n_classes" });
        }
        Ok(Self {
            features,
            labels,
            persons: None,
            shape: contract.shape.clone(),
            n_features,
            n_classes: contract.n_classes,
            derived: Derived::default(),
        })
    }

    /// The same labels with other features, `[n, shape…]`.
    pub(crate) fn with_features(&self, shape: &[usize], features: Features) -> Self {
        Self {
            features,
            labels: self.labels.clone(),
            persons: self.persons.clone(),
            shape: shape.to_vec(),
            n_features: shape.iter().product(),
            n_classes: self.n_classes,
            derived: Derived::default(),
        }
    }

    /// The same features with other labels, `[n]`.
    pub(crate) fn with_labels(&self, labels: Vec<u32>) -> Result<Self, DataError> {
        if labels.iter().any(|label| *label as usize >= self.n_classes) {
            return Err(DataError::Contract { reason: "a label is not below n_classes" });
        }
        Ok(Self { labels, derived: Derived::default(), ..self.clone() })
    }

    pub(crate) fn features(&self) -> &Features {
        &self.features
    }

    /// Number of examples: private, not for a log.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no example.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Shape of one example.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of classes in the plan.
    #[must_use]
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// The labels, `[n]`: private.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// These examples with the person of each: `persons` is `[n]`, any numbers.
    ///
    /// # Errors
    /// [`DataError::Contract`] unless there are as many numbers as examples.
    pub fn with_persons(self, persons: Vec<u32>) -> Result<Self, DataError> {
        if persons.len() != self.labels.len() {
            return Err(DataError::Contract { reason: "examples and persons differ in number" });
        }
        Ok(Self { persons: Some(renumbered(persons)), ..self })
    }

    /// The rows of each person, `[n_persons][n_rows]`, ascending; `None` if the data do not tell
    /// persons apart.  Private.
    #[must_use]
    pub fn rows_by_person(&self) -> Option<Vec<Vec<usize>>> {
        let persons = self.persons.as_ref()?;
        let n_persons = persons.iter().max().map_or(0, |last| *last as usize + 1);
        let mut rows = vec![Vec::new(); n_persons];
        for (row, person) in persons.iter().enumerate() {
            rows[*person as usize].push(row);
        }
        Some(rows)
    }

    /// The first `records_max` rows of each person, in the order of the file, which for one person
    /// does not depend on any other; `None` if the data do not tell persons apart.
    #[must_use]
    pub fn capped_by_person(&self, records_max: u32) -> Option<Cow<'_, Self>> {
        let mut rows = self.rows_by_person()?;
        let cap = records_max as usize;
        if rows.iter().all(|rows| rows.len() <= cap) {
            return Some(Cow::Borrowed(self));
        }
        rows.iter_mut().for_each(|rows| rows.truncate(cap));
        let mut kept = rows.concat();
        kept.sort_unstable();
        Some(Cow::Owned(self.subset(&kept)))
    }

    /// BLAKE3 of shape, features, labels and persons: private, for telling data sets apart on one machine.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("comity data set v1");
        hasher.update(format!("{:?} {}", self.shape, self.n_classes).as_bytes());
        match &self.features {
            Features::Bytes(bytes) => _ = hasher.update(bytes),
            Features::Halves(halves) => halves.iter().for_each(|half| {
                hasher.update(&half.to_le_bytes());
            }),
            Features::Reals(reals) => reals.iter().for_each(|real| {
                hasher.update(&real.to_le_bytes());
            }),
        }
        for number in self.labels.iter().chain(self.persons.iter().flatten()) {
            hasher.update(&number.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// How many examples each class has, `[n_classes]`: private.
    #[must_use]
    pub fn label_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.n_classes];
        for label in &self.labels {
            counts[*label as usize] += 1;
        }
        counts
    }

    /// How many of the examples at `indices` each class has, `[n_classes]`: private.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn label_counts_of(&self, indices: &[usize]) -> Vec<usize> {
        let mut counts = vec![0; self.n_classes];
        for &index in indices {
            counts[self.labels[index] as usize] += 1;
        }
        counts
    }

    /// The examples at `indices`, in that order, normalised. A missing value becomes zero, the
    /// normalised form of the plan's mean: a rule that looks at no other row.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn batch(&self, indices: &[usize], normalise: Normalise) -> Batch {
        let mut features = Vec::with_capacity(indices.len() * self.n_features);
        let rows = |index: usize| index * self.n_features..(index + 1) * self.n_features;
        match &self.features {
            Features::Bytes(bytes) => {
                let values: [f32; 256] =
                    std::array::from_fn(|byte| normalise.apply(byte as f32 / 255.0));
                for &index in indices {
                    features.extend(bytes[rows(index)].iter().map(|b| values[usize::from(*b)]));
                }
            }
            Features::Halves(halves) => {
                for &index in indices {
                    let values = halves[rows(index)].iter().map(|half| from_bfloat16(*half));
                    features.extend(values.map(|value| normalise.apply(value)));
                }
            }
            Features::Reals(reals) => {
                for &index in indices {
                    features.extend(
                        reals[rows(index)]
                            .iter()
                            .map(|x| if x.is_nan() { 0.0 } else { normalise.apply(*x) }),
                    );
                }
            }
        }
        Batch { features, labels: indices.iter().map(|&index| self.labels[index]).collect() }
    }

    /// The examples at `indices` as a data set of their own.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        fn gather<T: Copy>(values: &[T], n_features: usize, indices: &[usize]) -> Vec<T> {
            let mut gathered = Vec::with_capacity(indices.len() * n_features);
            for &index in indices {
                gathered.extend_from_slice(&values[index * n_features..(index + 1) * n_features]);
            }
            gathered
        }
        let features = match &self.features {
            Features::Bytes(bytes) => Features::Bytes(gather(bytes, self.n_features, indices)),
            Features::Halves(halves) => Features::Halves(gather(halves, self.n_features, indices)),
            Features::Reals(reals) => Features::Reals(gather(reals, self.n_features, indices)),
        };
        Self {
            features,
            labels: indices.iter().map(|&index| self.labels[index]).collect(),
            persons: self
                .persons
                .as_ref()
                .map(|persons| renumbered(indices.iter().map(|&index| persons[index]))),
            shape: self.shape.clone(),
            n_features: self.n_features,
            n_classes: self.n_classes,
            derived: Derived::default(),
        }
    }

    /// The rows of all `parts` after one another; persons of different parts are different persons.
    ///
    /// # Errors
    /// [`DataError::Contract`] if there are no parts, they are not of one shape and one kind of features,
    /// or only some tell persons apart.
    pub fn concat(parts: Vec<Self>) -> Result<Self, DataError> {
        let mut parts = parts.into_iter();
        let mut all = parts.next().ok_or(DataError::Contract { reason: "no sources" })?;
        for part in parts {
            if (&part.shape, part.n_classes) != (&all.shape, all.n_classes) {
                return Err(DataError::Contract { reason: "sources of different shapes" });
            }
            match (&mut all.features, part.features) {
                (Features::Bytes(all), Features::Bytes(part)) => all.extend(part),
                (Features::Halves(all), Features::Halves(part)) => all.extend(part),
                (Features::Reals(all), Features::Reals(part)) => all.extend(part),
                _ => {
                    let reason = "sources of different kinds, some of bytes and some of numbers";
                    return Err(DataError::Contract { reason });
                }
            }
            match (&mut all.persons, part.persons) {
                (Some(all), Some(part)) => {
                    let n_before = all.iter().max().map_or(0, |last| last + 1);
                    all.extend(part.into_iter().map(|person| n_before + person));
                }
                (None, None) => {}
                _ => {
                    let reason =
                        "only some of the sources say whose row each is; name `person` in all";
                    return Err(DataError::Contract { reason });
                }
            }
            all.labels.extend(part.labels);
            all.derived = Derived::default();
        }
        Ok(all)
    }

    /// Standardises every feature of the rows in `apply` by its mean and standard deviation (with
    /// `n - 1`) over the rows in `fit`; missing values stay missing, and a feature that does not vary
    /// over `fit` only loses its mean. Sums run in the order of `fit`, in `f64`.
    ///
    /// What comes of a row then depends on other rows: see who promises what before it is used under
    /// differential privacy.
    ///
    /// # Errors
    /// [`DataError::Contract`] if the features are bytes.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    pub fn standardise(&mut self, fit: &[usize], apply: &[&[usize]]) -> Result<(), DataError> {
        let n_features = self.n_features;
        let Features::Reals(reals) = &mut self.features else {
            let reason =
                "features of bytes are standardised by the plan's constants, not by their own";
            return Err(DataError::Contract { reason });
        };
        for feature in 0..n_features {
            let at = |row: usize| row * n_features + feature;
            let known = || fit.iter().map(|row| f64::from(reals[at(*row)])).filter(|x| !x.is_nan());
            let n = known().count() as f64;
            let mean = known().sum::<f64>() / n.max(1.0);
            let squares = known().map(|x| (x - mean) * (x - mean)).sum::<f64>();
            let std = (squares / (n - 1.0).max(1.0)).sqrt();
            let std = if std > 0.0 { std } else { 1.0 };
            for row in apply.iter().copied().flatten() {
                reals[at(*row)] = ((f64::from(reals[at(*row)]) - mean) / std) as f32;
            }
        }
        self.derived = Derived::default();
        Ok(())
    }

    /// The features as bytes, `[n, shape…]`, if they are stored so.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match &self.features {
            Features::Bytes(bytes) => Some(bytes),
            Features::Halves(_) | Features::Reals(_) => None,
        }
    }
}

/// The same persons, numbered from 0 in the order of their first rows.
fn renumbered(persons: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut numbers = HashMap::new();
    persons
        .into_iter()
        .map(|person| {
            let next = numbers.len() as u32;
            *numbers.entry(person).or_insert(next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scale;

    fn contract(scale: Scale) -> Contract {
        Contract { shape: vec![2], n_classes: 3, scale }
    }

    #[test]
    fn a_batch_keeps_the_order_asked_for_and_normalises() {
        let data = Dataset::from_bytes(&contract(Scale::Bytes), vec![0, 255, 51, 102], vec![2, 0])
            .unwrap();
        let batch = data.batch(&[1, 0, 1], Normalise { mean: 0.2, std: 0.4 });
        let near = [0.0, 0.5, -0.5, 2.0, 0.0, 0.5];
        assert!(batch.features.iter().zip(near).all(|(a, b)| (a - b).abs() < 1e-6), "{batch:?}");
        assert_eq!(batch.labels, [0, 2, 0]);
        assert_eq!(data.label_counts(), [1, 0, 1]);
        assert_eq!(data.subset(&[1]).batch(&[0], Normalise::IDENTITY).labels, [0]);
    }

    #[test]
    fn an_empty_batch_is_empty() {
        let data = Dataset::from_bytes(&contract(Scale::Bytes), vec![1, 2], vec![0]).unwrap();
        let batch = data.batch(&[], Normalise::IDENTITY);
        assert!(batch.features.is_empty() && batch.labels.is_empty());
    }

    #[test]
    fn a_missing_value_becomes_the_plans_mean() {
        let data =
            Dataset::from_reals(&contract(Scale::Real), vec![f32::NAN, 7.0], vec![1]).unwrap();
        let batch = data.batch(&[0], Normalise { mean: 5.0, std: 2.0 });
        assert_eq!(batch.features, [0.0, 1.0]);
    }

    #[test]
    fn lengths_and_labels_are_checked() {
        let bytes = contract(Scale::Bytes);
        assert!(Dataset::from_bytes(&bytes, vec![1], vec![0]).is_err());
        assert!(Dataset::from_bytes(&bytes, vec![1, 2], vec![3]).is_err());
        assert!(
            Dataset::from_reals(&contract(Scale::Real), vec![f32::INFINITY, 0.0], vec![0]).is_err()
        );
    }

    #[test]
    fn persons_keep_their_first_rows_and_their_numbers_have_no_gap() {
        let data = Dataset::from_bytes(&contract(Scale::Bytes), (0..12).collect(), vec![0; 6])
            .unwrap()
            .with_persons(vec![7, 3, 7, 7, 9, 3])
            .unwrap();
        assert_eq!(data.rows_by_person().unwrap(), [vec![0, 2, 3], vec![1, 5], vec![4]]);
        assert!(matches!(data.capped_by_person(3).unwrap(), Cow::Borrowed(_)));
        let capped = data.capped_by_person(2).unwrap();
        assert_eq!(capped.bytes().unwrap(), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]);
        assert_eq!(capped.rows_by_person().unwrap(), [vec![0, 2], vec![1, 4], vec![3]]);
        assert_eq!(data.subset(&[4, 1]).rows_by_person().unwrap(), [[0], [1]]);
        let empty = data.subset(&[]);
        assert!(empty.rows_by_person().unwrap().is_empty());
        assert!(empty.capped_by_person(1).unwrap().is_empty());
        let no_ids = Dataset::from_bytes(&contract(Scale::Bytes), vec![1, 2], vec![0]).unwrap();
        assert!(no_ids.rows_by_person().is_none() && no_ids.capped_by_person(1).is_none());
        assert!(no_ids.with_persons(vec![]).is_err());
    }

    #[test]
    fn data_sets_are_put_together_if_they_are_of_one_kind() {
        let bytes = |n: u8| {
            let features = (0..2 * n).collect();
            Dataset::from_bytes(&contract(Scale::Bytes), features, vec![0; n.into()]).unwrap()
        };
        let reals = Dataset::from_reals(&contract(Scale::Real), vec![0.5; 2], vec![1]).unwrap();
        let all = Dataset::concat(vec![bytes(1), bytes(2)]).unwrap();
        assert_eq!((all.bytes().unwrap(), all.len()), (&[0, 1, 0, 1, 2, 3][..], 3));
        assert!(Dataset::concat(vec![]).is_err());
        assert!(Dataset::concat(vec![bytes(1), reals]).is_err());
        let persons = |data: Dataset| data.with_persons(vec![5, 5]).unwrap();
        let two = Dataset::concat(vec![persons(bytes(2)), persons(bytes(2))]).unwrap();
        assert_eq!(two.rows_by_person().unwrap(), [[0, 1], [2, 3]]);
        let error = Dataset::concat(vec![persons(bytes(2)), bytes(2)]).unwrap_err();
        assert!(error.to_string().contains("name `person` in all"), "{error}");
    }

    #[test]
    fn features_are_standardised_by_the_rows_that_are_said() {
        // The second feature does not vary over the first three rows.
        let features = vec![1.0, 4.0, 2.0, 4.0, f32::NAN, 4.0, 6.0, 5.0];
        let mut data = Dataset::from_reals(&contract(Scale::Real), features, vec![0; 4]).unwrap();
        let std = 0.5f64.sqrt();
        data.standardise(&[0, 1, 2], &[&[0, 2], &[3]]).unwrap();
        let all = data.batch(&[0, 1, 2, 3], Normalise::IDENTITY).features;
        let expected = [-0.5 / std, 0.0, 2.0, 4.0, 0.0, 0.0, 4.5 / std, 1.0];
        assert!(all.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{all:?}");
        let mut bytes = Dataset::from_bytes(&contract(Scale::Bytes), vec![1, 2], vec![0]).unwrap();
        assert!(bytes.standardise(&[0], &[]).is_err());
    }

    #[test]
    fn debug_output_shows_no_rows() {
        let data = Dataset::from_bytes(&contract(Scale::Bytes), vec![77, 78], vec![1]).unwrap();
        let text = format!("{data:?}");
        assert!(!text.contains("77") && !text.contains("labels"), "{text}");
    }
}
