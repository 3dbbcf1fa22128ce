//! How one trained tensor's per-example norms and weighted sum of gradients follow from what a layer
//! saw and the loss's gradient with respect to its output.

use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor};

use crate::model::read;
use crate::units::Group;

/// How much dearer it is to write and read back a per-example weight gradient than to multiply
/// and add it: the rate at which memory is exchanged for arithmetic.
const MEMORY_COST: usize = 8;

/// Most elements that norms may hold at once besides the layers' own: units are taken a few at a
/// time. 2²⁴ of f32 are 64 MiB.
const N_ELEMENTS_MAX: usize = 1 << 24;

/// The use of a trained tensor in one pass.
pub(crate) struct Site {
    /// Where the tensor begins among the trained parameters.
    offset: usize,
    kind: Kind,
}

enum Kind {
    /// `a`: `[n, positions, n_in]`, `d`: `[n, positions, n_out]`; example `i`'s gradient is
    /// `d_iᵀ a_i`, `[n_out, n_in]`. `bias` is where a bias begins, whose gradient is `d_i`'s sum.
    Product { a: Tensor<3>, d: Tensor<3>, bias: Option<usize> },
    /// Per-example gradients written out, `[n, n_elements]`.
    Rows(Tensor<2>),
    /// A table of `vocabulary` rows; row `indices[i, t]` of example `i`'s gradient has `d[i, t]`.
    Lookup { indices: Tensor<2, Int>, d: Tensor<3>, vocabulary: usize },
}

impl Site {
    /// A linear map's weight, `[n_out, n_in]`, from its input `a`, `[n, positions, n_in]`, and `d`,
    /// `[n, positions, n_out]`; with the offset of its bias, if it has one.
    pub(crate) fn product(offset: usize, a: Tensor<3>, d: Tensor<3>, bias: Option<usize>) -> Self {
        Self { offset, kind: Kind::Product { a, d, bias } }
    }

    /// A tensor whose per-example gradients are small, `[n, n_elements]`.
    pub(crate) fn rows(offset: usize, rows: Tensor<2>) -> Self {
        Self { offset, kind: Kind::Rows(rows) }
    }

    /// An embedding's table, from its tokens, `[n, positions]`, and `d`, `[n, positions, width]`.
    pub(crate) fn lookup(
        offset: usize,
        indices: Tensor<2, Int>,
        d: Tensor<3>,
        vocabulary: usize,
    ) -> Self {
        Self { offset, kind: Kind::Lookup { indices, d, vocabulary } }
    }

    /// A convolution's weight and bias, from the windows of its input as columns,
    /// `[n, n_in, positions]`, and `d`, `[n, n_out, positions]`.
    pub(crate) fn push_convolution(
        weight: usize,
        bias: usize,
        columns: Tensor<3>,
        d: Tensor<3>,
        sites: &mut Vec<Self>,
    ) {
        let ([n, n_in, positions], [_, n_out, _]) = (columns.dims(), d.dims());
        if gram_is_cheaper(positions, n_in, n_out) {
            let (a, d) = (columns.swap_dims(1, 2), d.swap_dims(1, 2));
            sites.push(Self::product(weight, a, d, Some(bias)));
            return;
        }
        sites.push(Self::rows(bias, d.clone().sum_dim(2).reshape([n, n_out])));
        let weights = d.matmul(columns.swap_dims(1, 2)).reshape([n, n_out * n_in]);
        sites.push(Self::rows(weight, weights));
    }

    /// Squared L2 norm of the gradient of each unit of `group`, `[n_units, 1]`.
    pub(crate) fn squared_norms(&self, group: &Group, order: Option<&Tensor<1, Int>>) -> Tensor<2> {
        let Group { n_units, size, .. } = *group;
        // A unit of several examples is one of as many more positions.
        match &self.kind {
            Kind::Product { a, d, bias } => {
                let (a, d) = (group.rows(a, order), group.rows(d, order));
                let ([_, positions, n_in], [_, _, n_out]) = (a.dims(), d.dims());
                let a = a.reshape([n_units, size * positions, n_in]);
                let d = d.reshape([n_units, size * positions, n_out]);
                product_squared_norms(a, d, bias.is_some())
            }
            Kind::Rows(rows) => {
                let [_, n] = rows.dims();
                let rows = group.rows(rows, order);
                if size == 1 {
                    return squares(rows);
                }
                squares(rows.reshape([n_units, size, n]).sum_dim(1).reshape([n_units, n]))
            }
            Kind::Lookup { indices, d, vocabulary } => {
                let (indices, d) = (group.rows(indices, order), group.rows(d, order));
                let [_, positions, width] = d.dims();
                let indices = indices.reshape([n_units, size * positions]);
                let d = d.reshape([n_units, size * positions, width]);
                lookup_squared_norms(indices, d, *vocabulary)
            }
        }
    }

    /// The site with zeros in place of the examples that are `dropped`, `[n]`.
    pub(crate) fn without(self, dropped: &Tensor<1, Bool>) -> Self {
        let kind = match self.kind {
            Kind::Product { a, d, bias } => {
                Kind::Product { a: zero_rows(a, dropped), d: zero_rows(d, dropped), bias }
            }
            Kind::Rows(rows) => Kind::Rows(zero_rows(rows, dropped)),
            Kind::Lookup { indices, d, vocabulary } => {
                Kind::Lookup { indices, d: zero_rows(d, dropped), vocabulary }
            }
        };
        Self { kind, ..self }
    }

    /// Writes the sum of the examples' gradients weighted by `factors`, `[n]`, to its place in
    /// `sum`, `[n_trainable]`.
    pub(crate) fn write_weighted_sum(self, factors: &Tensor<1>, sum: &mut [f32]) {
        let n = factors.dims()[0];
        let mut write = |offset: usize, values: Tensor<2>| {
            let values = read(values);
            sum[offset..offset + values.len()].copy_from_slice(&values);
        };
        match self.kind {
            Kind::Product { a, d, bias } => {
                let ([_, positions, n_in], [_, _, n_out]) = (a.dims(), d.dims());
                let d = d * factors.clone().reshape([n, 1, 1]);
                let d = d.reshape([n * positions, n_out]);
                let a = a.reshape([n * positions, n_in]);
                write(self.offset, d.clone().transpose().matmul(a));
                if let Some(bias) = bias {
                    write(bias, d.sum_dim(0));
                }
            }
            Kind::Rows(rows) => write(self.offset, factors.clone().reshape([1, n]).matmul(rows)),
            Kind::Lookup { indices, d, vocabulary } => {
                let d = d * factors.clone().reshape([n, 1, 1]);
                write(self.offset, table(indices, d, vocabulary));
            }
        }
    }
}

/// The gradient of a table of `vocabulary` rows, summed over all examples, `[vocabulary, width]`.
fn table(indices: Tensor<2, Int>, d: Tensor<3>, vocabulary: usize) -> Tensor<2> {
    let [n, positions, width] = d.dims();
    Tensor::zeros([vocabulary, width], &d.device()).select_assign(
        0,
        indices.reshape([n * positions]),
        d.reshape([n * positions, width]),
        IndexingUpdateOp::Add,
    )
}

/// Squared norms of each unit's gradient of a table, `[n, 1]`: positions with the same token add up.
fn lookup_squared_norms(indices: Tensor<2, Int>, d: Tensor<3>, vocabulary: usize) -> Tensor<2> {
    let [n, positions, width] = d.dims();
    if positions == 1 {
        return squares(d.reshape([n, width]));
    }
    let is_gram = 2 * positions * positions <= vocabulary * width;
    let n_elements = if is_gram { 2 * positions * positions } else { vocabulary * width };
    let n_at_once = if is_gram { (N_ELEMENTS_MAX / n_elements).clamp(1, n) } else { 1 };
    let norms = (0..n).step_by(n_at_once).map(|start| {
        let n = n_at_once.min(n - start);
        let (indices, d) = (indices.clone().narrow(0, start, n), d.clone().narrow(0, start, n));
        if is_gram {
            let rows = indices.clone().unsqueeze_dim::<3>(2).expand([n, positions, positions]);
            let columns = indices.unsqueeze_dim::<3>(1).expand([n, positions, positions]);
            let gram = d.clone().matmul(d.swap_dims(1, 2));
            // Not a product with zeros and ones: a token that is not finite must not be hidden,
            // and neither may it make others so; the diagonal shows it.
            let same = gram.mask_fill(rows.not_equal(columns), 0.0);
            same.reshape([n, positions * positions]).sum_dim(1).abs()
        } else {
            squares(table(indices, d, vocabulary).reshape([1, vocabulary * width]))
        }
    });
    Tensor::cat(norms.collect(), 0)
}

/// Squared norms of each unit's gradient of weight and bias, `[n, 1]`, from `[n, positions, …]`.
fn product_squared_norms(a: Tensor<3>, d: Tensor<3>, has_bias: bool) -> Tensor<2> {
    let ([n, positions, n_in], [_, _, n_out]) = (a.dims(), d.dims());
    if positions == 1 {
        // ‖d aᵀ‖² = ‖a‖² ‖d‖², and the bias's gradient is d.
        let of_bias = f64::from(u8::from(has_bias));
        return (squares(a.reshape([n, n_in])) + of_bias) * squares(d.reshape([n, n_out]));
    }
    let biases = has_bias.then(|| squares(d.clone().sum_dim(1).reshape([n, n_out])));
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
    let weights = Tensor::cat(weights.collect(), 0);
    match biases {
        None => weights,
        Some(biases) => weights + biases,
    }
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
