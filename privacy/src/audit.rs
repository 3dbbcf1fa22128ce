//! Statistics of audits: what measured outputs say about a promise that was made on paper.
//!
//! An audit can refute a promise, never prove it. Each function here takes numbers that somebody
//! measured and gives a bound or a p-value; what is measured, and how, is `comity-sim audit`
//! (docs/privacy.md, section 10). Nothing that is deployed calls this module.
//!
//! - [`one_run`]: lower bounds on ε from guesses about canaries in a single training run.
//! - [`noise`]: whether integer noise is distributed as it should be and independent.
//! - [`normal`]: the normal distribution and tails of the binomial and chi-square.

pub mod noise;
pub mod normal;
pub mod one_run;
