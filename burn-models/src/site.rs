//! How one tensor pair's per-example gradients, norms and weighted sums follow from what a layer
//! saw and the loss's gradient with respect to its output.

use burn::tensor::{Bool, Int, Tensor};

use crate::model::read;
use crate::units::Group;

/// How much dearer it is to write and read back a per-example weight gradient than to multiply
/// and add it: the rate at which memory is exchanged for arithmetic.
const MEMORY_COST: usize = 8;

/// Most elements that norms may hold at once besides the layers' own: units are taken a few at a
/// time. 2²⁴ of f32 are 64 MiB.
const N_ELEMENTS_MAX: usize = 1 << 24;

/// The use of a weight and its bias in one pass.
pub(crate) enum Site {
    /// `a`: `[n, positions, n_in]`, `d`: `[n, positions, n_out]`; example `i`'s weight gradient is
    /// `d_iᵀ a_i`, `[n_out, n_in]`.
    Product { a: Tensor<3>, d: Tensor<3> },
    /// Per-example gradients written out: `weights`, `[n, n_weights]`; `biases`, `[n, n_out]`.
    Materialised { weights: Tensor<2>, biases: Tensor<2> },
}

impl Site {
    /// A convolution's, from the windows of its input as columns, `[n, n_in, positions]`, and
    /// `d`, `[n, n_out, positions]`.
    pub(crate) fn convolution(columns: Tensor<3>, d: Tensor<3>) -> Self {
        let ([n, n_in, positions], [_, n_out, _]) = (columns.dims(), d.dims());
        if gram_is_cheaper(positions, n_in, n_out) {
            return Self::Product { a: columns.swap_dims(1, 2), d: d.swap_dims(1, 2) };
        }
        let biases = d.clone().sum_dim(2).reshape([n, n_out]);
        let weights = d.matmul(columns.swap_dims(1, 2)).reshape([n, n_out * n_in]);
        Self::Materialised { weights, biases }
    }

    /// Squared L2 norm of the gradient of each unit of `group`, `[n_units, 1]`.
    pub(crate) fn squared_norms(&self, group: &Group, order: Option<&Tensor<1, Int>>) -> Tensor<2> {
        let Group { n_units, size, .. } = *group;
        match self {
            Self::Product { a, d } => {
                let (a, d) = (group.rows(a, order), group.rows(d, order));
                let ([_, positions, n_in], [_, _, n_out]) = (a.dims(), d.dims());
                // A unit of several examples is one of as many more positions.
                let positions = size * positions;
                product_squared_norms(
                    a.reshape([n_units, positions, n_in]),
                    d.reshape([n_units, positions, n_out]),
                )
            }
            Self::Materialised { weights, biases } => {
                let of_units = |rows: &Tensor<2>| {
                    let [_, n] = rows.dims();
                    let rows = group.rows(rows, order);
                    if size == 1 {
                        return squares(rows);
                    }
                    squares(rows.reshape([n_units, size, n]).sum_dim(1).reshape([n_units, n]))
                };
                of_units(weights) + of_units(biases)
            }
        }
    }

    /// The site with zeros in place of the examples that are `dropped`, `[n]`.
    pub(crate) fn without(self, dropped: &Tensor<1, Bool>) -> Self {
        match self {
            Self::Product { a, d } => {
                Self::Product { a: zero_rows(a, dropped), d: zero_rows(d, dropped) }
            }
            Self::Materialised { weights, biases } => Self::Materialised {
                weights: zero_rows(weights, dropped),
                biases: zero_rows(biases, dropped),
            },
        }
    }

    /// Appends the sum of the examples' gradients weighted by `factors`, `[n]`.
    pub(crate) fn push_weighted_sum(self, factors: &Tensor<1>, sum: &mut Vec<f32>) {
        let n = factors.dims()[0];
        match self {
            Self::Product { a, d } => {
                let ([_, positions, n_in], [_, _, n_out]) = (a.dims(), d.dims());
                let d = d * factors.clone().reshape([n, 1, 1]);
                let d = d.reshape([n * positions, n_out]);
                let a = a.reshape([n * positions, n_in]);
                sum.extend(read(d.clone().transpose().matmul(a)));
                sum.extend(read(d.sum_dim(0)));
            }
            Self::Materialised { weights, biases } => {
                let factors = factors.clone().reshape([1, n]);
                sum.extend(read(factors.clone().matmul(weights)));
                sum.extend(read(factors.matmul(biases)));
            }
        }
    }
}

/// Squared norms of each unit's weight and bias gradient, `[n, 1]`, from `[n, positions, …]`.
fn product_squared_norms(a: Tensor<3>, d: Tensor<3>) -> Tensor<2> {
    let ([n, positions, n_in], [_, _, n_out]) = (a.dims(), d.dims());
    if positions == 1 {
        // ‖d aᵀ‖² = ‖a‖² ‖d‖², and the bias's gradient is d.
        return (squares(a.reshape([n, n_in])) + 1.0) * squares(d.reshape([n, n_out]));
    }
    let biases = squares(d.clone().sum_dim(1).reshape([n, n_out]));
    let is_gram = gram_is_cheaper(positions, n_in, n_out);
    let n_elements = if is_gram { 2 * positions * positions } else { n_in * n_out };
    let n_at_once = (N_ELEMENTS_MAX / n_elements.max(1)).clamp(1, n);
    let weights = (0..n).step_by(n_at_once).map(|start| {
        let n = n_at_once.min(n - start);
        let (a, d) = (a.clone().narrow(0, start, n), d.clone().narrow(0, start, n));
        if is_gram {
            // ‖dᵀ a‖² = ⟨a aᵀ, d dᵀ⟩, of the size of positions instead of weights.
            let gram_a = a.clone().matmul(a.swap_dims(1, 2));
            let gram_d = d.clone().matmul(d.swap_dims(1, 2));
            let sum = (gram_a * gram_d).reshape([n, positions * positions]).sum_dim(1);
            // Rounding may bring a norm that is nearly zero below it. Not `clamp_min`, which
            // would turn NaN into zero and hide that the unit must be dropped.
            sum.abs()
        } else {
            squares(d.swap_dims(1, 2).matmul(a).reshape([n, n_out * n_in]))
        }
    });
    Tensor::cat(weights.collect(), 0) + biases
}

/// Whether norms cost less by Gram matrices of positions than by writing out each weight gradient.
pub(crate) fn gram_is_cheaper(positions: usize, n_in: usize, n_out: usize) -> bool {
    positions * positions * (n_in + n_out) < MEMORY_COST * n_in * n_out
}

/// Sum of squares of each row, `[n, 1]`.
fn squares(rows: Tensor<2>) -> Tensor<2> {
    (rows.clone() * rows).sum_dim(1)
}

/// `tensor` with zeros in place of the examples that are `dropped`, `[n]`.
fn zero_rows<const D: usize>(tensor: Tensor<D>, dropped: &Tensor<1, Bool>) -> Tensor<D> {
    let dims = tensor.dims();
    let mut broadcast = [1; D];
    broadcast[0] = dims[0];
    let mask = dropped.clone().reshape(broadcast).expand(dims);
    let zeros = Tensor::zeros(dims, &tensor.device());
    tensor.mask_where(mask, zeros)
}
