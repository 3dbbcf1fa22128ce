//! The noise of a session's steps, drawn before the data of those steps are touched.
//!
//! ```text
//! Session --noise_ahead--> NoiseAhead --lanes(n)--> NoiseLane × n --next--> StepNoise --privatise--> Session
//! ```
//!
//! Drawing it ahead takes the time out of the step, and takes the time that a draw took out of what
//! anybody can learn from the step. The caller brings the threads. Step `k`'s noise comes from fork
//! `k` of the session's source, so it is the same however many lanes there are, and a
//! [`StepNoise`] is used up by the one step that it is for.

use std::sync::Arc;

use crate::{
    error::PrivacyError,
    noise::{Noise, NoiseKind},
    plan::GRID_BITS,
};

/// All noise of a session that is still to be drawn.
pub struct NoiseAhead {
    source: Arc<dyn Noise>,
    session: [u8; 32],
    kind: NoiseKind,
    n_parameters: usize,
    n_steps: u32,
}

/// The steps `first`, `first + stride`, … of a session's noise, in order.
pub struct NoiseLane {
    ahead: Arc<NoiseAhead>,
    next: u32,
    stride: u32,
}

/// One step's noise, in grid units. It cannot be copied.
pub struct StepNoise {
    pub(crate) session: [u8; 32],
    pub(crate) step: u32,
    pub(crate) values: Vec<i64>,
}

impl NoiseAhead {
    pub(crate) fn new(
        source: Box<dyn Noise>,
        session: [u8; 32],
        kind: NoiseKind,
        n_parameters: usize,
        n_steps: u32,
    ) -> Self {
        Self { source: source.into(), session, kind, n_parameters, n_steps }
    }

    /// Memory of one step's noise, in bytes.
    pub fn step_bytes(&self) -> usize {
        self.n_parameters.saturating_mul(size_of::<i64>())
    }

    /// Divides the steps: lane `i` of `n` draws those of the steps whose number leaves `i`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn lanes(self, n: u32) -> Vec<NoiseLane> {
        assert!(n > 0, "noise needs a lane to come by");
        let ahead = Arc::new(self);
        (0..n).map(|next| NoiseLane { ahead: Arc::clone(&ahead), next, stride: n }).collect()
    }
}

impl Iterator for NoiseLane {
    type Item = Result<StepNoise, PrivacyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.next;
        if step >= self.ahead.n_steps {
            return None;
        }
        self.next = step.saturating_add(self.stride);
        let mut values = vec![0; self.ahead.n_parameters];
        let mut source = self.ahead.source.fork(u64::from(step));
        let drawn = source.draw(self.ahead.kind, GRID_BITS, &mut values);
        Some(drawn.map(|()| StepNoise { session: self.ahead.session, step, values }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::KeyedNoise;

    fn steps(n_lanes: u32) -> Vec<(u32, Vec<i64>)> {
        let source = Box::new(KeyedNoise::under([3; 32]));
        let ahead = NoiseAhead::new(source, [0; 32], NoiseKind::DiscreteGaussian, 5, 7);
        let mut steps: Vec<_> = ahead
            .lanes(n_lanes)
            .into_iter()
            .flatten()
            .map(|noise| noise.map(|noise| (noise.step, noise.values)).unwrap())
            .collect();
        steps.sort();
        steps
    }

    #[test]
    fn a_steps_noise_does_not_depend_on_the_number_of_lanes() {
        let one = steps(1);
        assert_eq!(one.len(), 7);
        assert!(one.windows(2).all(|pair| pair[0].1 != pair[1].1));
        for n_lanes in [2, 3, 7, 20] {
            assert_eq!(steps(n_lanes), one);
        }
    }
}
