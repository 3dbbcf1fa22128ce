//! What a person can ask of the node.

pub(crate) mod check;
pub(crate) mod ledger;
pub(crate) mod start;
