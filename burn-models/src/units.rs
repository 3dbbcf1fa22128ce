//! Whose gradients are summed before they are clipped: an example's alone, or all of a person's.
//!
//! A person with k examples is treated as one example with k times as many positions: its rows of
//! a layer's inputs and output gradients, one after the other. Persons with equally many examples
//! make a group, so that nothing is padded and memory does not depend on who is in the batch.

use burn::tensor::kind::Basic;
use burn::tensor::{Int, Tensor, TensorData};

use crate::Device;

/// How the examples of a batch form units of clipping.
pub(crate) struct Units {
    /// The examples unit by unit in the order of `groups`; `None`: as they are.
    order: Option<Vec<usize>>,
    groups: Vec<Group>,
}

/// Units of equally many examples each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Where the group begins in the order of examples.
    start: usize,
    /// Number of units.
    pub(crate) n_units: usize,
    /// Examples of one unit.
    pub(crate) size: usize,
}

impl Units {
    /// Each of `n` examples by itself.
    pub(crate) fn examples(n: usize) -> Self {
        Self { order: None, groups: vec![Group { start: 0, n_units: n, size: 1 }] }
    }

    /// The examples of one person together; one that is masked is by itself. `persons`: one an
    /// example, below their number.
    pub(crate) fn persons(mask: &[bool], persons: &[usize]) -> Self {
        let n = mask.len();
        let mut of_person = vec![Vec::new(); n];
        let mut units = Vec::new();
        for (example, (person, counts)) in persons.iter().zip(mask).enumerate() {
            assert!(*person < n, "persons are numbered below the number of examples, {n}");
            if *counts {
                of_person[*person].push(example);
            } else {
                units.push(vec![example]);
            }
        }
        if of_person.iter().all(|examples| examples.len() <= 1) {
            return Self::examples(n);
        }
        units.extend(of_person.into_iter().filter(|examples| !examples.is_empty()));
        units.sort_by_key(Vec::len);
        let mut groups = Vec::new();
        let mut start = 0;
        for units in units.chunk_by(|one, other| one.len() == other.len()) {
            let (n_units, size) = (units.len(), units[0].len());
            groups.push(Group { start, n_units, size });
            start += n_units * size;
        }
        Self { order: Some(units.concat()), groups }
    }

    /// By ascending size.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The examples in the groups' order, if it is not their own.
    pub(crate) fn order(&self, device: &Device) -> Option<Tensor<1, Int>> {
        let order: Vec<i32> = self.order.as_ref()?.iter().map(|i| *i as i32).collect();
        let n = order.len();
        Some(Tensor::from_data(TensorData::new(order, [n]), device))
    }

    /// Each example's value of `values`, `[n_units]` in the groups' order.
    pub(crate) fn of_examples<T: Copy>(&self, values: &[T]) -> Vec<T> {
        let Some(order) = &self.order else {
            return values.to_vec();
        };
        let sizes = self.groups.iter().flat_map(|g| std::iter::repeat_n(g.size, g.n_units));
        let in_order = values.iter().zip(sizes).flat_map(|(v, size)| std::iter::repeat_n(*v, size));
        let mut pairs: Vec<(usize, T)> = order.iter().copied().zip(in_order).collect();
        pairs.sort_by_key(|(example, _)| *example);
        pairs.into_iter().map(|(_, value)| value).collect()
    }
}

impl Group {
    /// Rows of the group's examples, `[n_units * size, …]`, out of those of all examples.
    pub(crate) fn rows<const D: usize, K: Basic>(
        &self,
        tensor: &Tensor<D, K>,
        order: Option<&Tensor<1, Int>>,
    ) -> Tensor<D, K> {
        let n = self.n_units * self.size;
        match order {
            None => tensor.clone(),
            Some(order) => tensor.clone().select(0, order.clone().narrow(0, self.start, n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persons_of_as_many_examples_make_a_group() {
        let mask = [true, true, false, true, true, true, true];
        let units = Units::persons(&mask, &[3, 0, 0, 3, 6, 5, 3]);
        assert_eq!(units.order.as_deref().unwrap(), [2, 1, 5, 4, 0, 3, 6]);
        let group = |start, n_units, size| Group { start, n_units, size };
        // Of person 3: examples 0 and 3 and 6.
        assert_eq!(units.groups, [group(0, 4, 1), group(4, 1, 3)]);
        assert_eq!(units.of_examples(&[10, 11, 12, 13, 14]), [14, 11, 10, 14, 13, 12, 14]);
    }

    #[test]
    fn examples_by_themselves_keep_their_order() {
        for units in [
            Units::examples(4),
            Units::persons(&[true; 4], &[3, 1, 2, 0]),
            Units::persons(&[false, true, false, false], &[1; 4]),
        ] {
            assert!(units.order.is_none());
            assert_eq!(units.groups, [Group { start: 0, n_units: 4, size: 1 }]);
        }
    }
}
