//! SCAFFOLD (Karimireddy et al. 2020, algorithm 1 with option II, <https://arxiv.org/abs/1910.06378>).
//!
//! A client adds `c - c_i` to each of its K gradients, and keeps
//!
//! ```text
//! c_i' = c_i - c + (x - y_i) / (K eta) = c_i - c - D_i / (K eta)      where D_i = y_i - x, its update
//! ```
//!
//! so that its change of control `c_i' - c_i = -c - D_i / (K eta)` follows from what it sends anyway: nothing
//! more leaves it.  The server moves x by the mean of the updates, and
//!
//! ```text
//! c' = c + share * mean(c_i' - c_i) = c - share * (c + mean(D_i) / (K eta))
//! ```
//!
//! where `share` is the contributors' part of the named clients' weight, |S| / N where they weigh the same.
//! Both sides use the update as it was released, on the plan's grid, so that c stays the mean of all c_i.
//! An update that does not count (it came too late, say) is an exception: its client's `c_i` has moved, and c has
//! not; until the run's end c then differs from the mean by that client's share of the change.

use super::Moved;

/// The step of one coordinate from the last control `c`; `path` is K eta.
pub(super) fn moved(path: f64, share: f64, c: f64, mean: f64) -> Moved {
    Moved { direction: mean, states: [c - share * (c + mean / path), 0.0] }
}
