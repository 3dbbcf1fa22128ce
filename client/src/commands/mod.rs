//! What a person can ask of the node.

use comity_privacy::BoundKind;

pub mod check;
pub mod egress;
pub mod join;
pub mod journal;
pub mod ledger;
pub mod model;
pub mod plan;
pub mod policy;
pub mod privacy;
pub mod receipts;
pub mod run;
pub mod start;

/// How a table names a bound.
fn bound(kind: BoundKind) -> &'static str {
    match kind {
        BoundKind::Rdp => "RDP",
        BoundKind::Pld => "PLD",
        BoundKind::ExactGaussian => "exact Gaussian",
    }
}

/// An ε for a table, rounded up so that it is never understated.
fn epsilon(value: f64) -> String {
    if value.is_finite() {
        format!("{:.4}", (value * 1e4).ceil() / 1e4)
    } else {
        "infinite".to_owned()
    }
}
