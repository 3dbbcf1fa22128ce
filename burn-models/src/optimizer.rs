//! The local step on flat vectors: the same code with and without differential privacy, on every
//! device.

use comity_federation::Optimizer;
use fearless_simd::{Level, dispatch};

/// An optimizer with its state, which starts afresh in each round: a client may skip rounds, so a
/// state that outlived a round would belong to another model.
#[derive(Clone, Debug)]
pub(crate) struct OptimizerState {
    optimizer: Optimizer,
    /// Momentum of SGD or Adam's first moment, `[n_parameters]`.
    first: Vec<f64>,
    /// Adam's second moment, `[n_parameters]`; empty for SGD.
    second: Vec<f64>,
    n_steps: i32,
}

impl OptimizerState {
    pub(crate) fn new(optimizer: Optimizer, n_parameters: usize) -> Self {
        let (first, second) = match optimizer {
            Optimizer::Sgd { momentum: 0.0, .. } => (0, 0),
            Optimizer::Sgd { .. } => (n_parameters, 0),
            Optimizer::Adam { .. } => (n_parameters, n_parameters),
        };
        Self { optimizer, first: vec![0.0; first], second: vec![0.0; second], n_steps: 0 }
    }

    /// Moves `values` one step against `gradient`; both `[n_parameters]`.
    pub(crate) fn step(&mut self, values: &mut [f32], gradient: &[f32]) {
        assert_eq!(values.len(), gradient.len());
        self.n_steps = self.n_steps.saturating_add(1);
        // On as many values at once as the processor can; each is computed the same in any case.
        dispatch!(Level::new(), _ => self.move_values(values, gradient));
    }

    #[inline(always)]
    fn move_values(&mut self, values: &mut [f32], gradient: &[f32]) {
        let pairs = values.iter_mut().zip(gradient.iter().map(|g| f64::from(*g)));
        match self.optimizer {
            Optimizer::Sgd { learning_rate, momentum: 0.0 } => {
                for (value, gradient) in pairs {
                    *value = (f64::from(*value) - learning_rate * gradient) as f32;
                }
            }
            // PyTorch's form: v = m v + g, x = x - lr v.
            Optimizer::Sgd { learning_rate, momentum } => {
                for ((value, gradient), velocity) in pairs.zip(&mut self.first) {
                    *velocity = momentum * *velocity + gradient;
                    *value = (f64::from(*value) - learning_rate * *velocity) as f32;
                }
            }
            // Kingma & Ba 2015, algorithm 1, with bias correction.
            Optimizer::Adam { learning_rate, beta1, beta2, epsilon } => {
                let correction1 = 1.0 - beta1.powi(self.n_steps);
                let correction2 = 1.0 - beta2.powi(self.n_steps);
                let moments = self.first.iter_mut().zip(&mut self.second);
                for ((value, gradient), (first, second)) in pairs.zip(moments) {
                    *first = beta1 * *first + (1.0 - beta1) * gradient;
                    *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                    let step = (*first / correction1) / ((*second / correction2).sqrt() + epsilon);
                    *value = (f64::from(*value) - learning_rate * step) as f32;
                }
            }
        }
    }
}

/// Exponential moving average of the weights of a round's steps.
#[derive(Clone, Debug)]
pub(crate) struct WeightAverage {
    decay: f64,
    /// `[n_parameters]`.
    mean: Vec<f64>,
    n_steps: u32,
}

impl WeightAverage {
    pub(crate) fn new(decay: f64, start: &[f32]) -> Self {
        Self { decay, mean: start.iter().map(|value| f64::from(*value)).collect(), n_steps: 0 }
    }

    /// Takes in the weights after a step, `[n_parameters]`.
    pub(crate) fn add(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.mean.len());
        self.n_steps = self.n_steps.saturating_add(1);
        // A short memory at first, so that the start does not weigh (De et al. 2022, appendix).
        let warm_up = (1.0 + f64::from(self.n_steps)) / (10.0 + f64::from(self.n_steps));
        let decay = self.decay.min(warm_up);
        for (mean, value) in self.mean.iter_mut().zip(values) {
            *mean = decay * *mean + (1.0 - decay) * f64::from(*value);
        }
    }

    /// The averaged weights, `[n_parameters]`.
    pub(crate) fn values(&self) -> Vec<f32> {
        self.mean.iter().map(|value| *value as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(optimizer: Optimizer, gradients: &[[f32; 2]]) -> Vec<f32> {
        let mut values = vec![1.0, -1.0];
        let mut state = OptimizerState::new(optimizer, 2);
        for gradient in gradients {
            state.step(&mut values, gradient);
        }
        values
    }

    fn assert_near(values: &[f32], expected: &[f32]) {
        assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{values:?}");
    }

    #[test]
    fn sgd_follows_the_gradient() {
        let optimizer = Optimizer::Sgd { learning_rate: 0.5, momentum: 0.0 };
        assert_near(&steps(optimizer, &[[1.0, -2.0], [0.0, 2.0]]), &[0.5, -1.0]);
    }

    #[test]
    fn momentum_remembers() {
        let optimizer = Optimizer::Sgd { learning_rate: 0.5, momentum: 0.5 };
        // v = 1, then 0.5 + 1 = 1.5.
        assert_near(&steps(optimizer, &[[1.0, 0.0], [1.0, 0.0]]), &[-0.25, -1.0]);
    }

    /// Values of `torch.optim.Adam(lr=0.1)` by hand: the first step is the sign times the rate.
    #[test]
    fn adam_corrects_its_bias() {
        let optimizer =
            Optimizer::Adam { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
        assert_near(&steps(optimizer, &[[3.0, -1.0]]), &[0.9, -0.9]);
        // m = 0.27 / 0.19, v = 0.017991 / 0.001999: 0.9 - 0.1 * 1.42105 / 2.99975.
        let expected = 0.9 - 0.1 * (0.57 / 0.19) / 3.0;
        assert_near(&steps(optimizer, &[[3.0, 0.0], [3.0, 0.0]])[..1], &[expected as f32]);
    }

    #[test]
    fn the_average_forgets_its_start_and_follows() {
        let mut average = WeightAverage::new(0.25, &[8.0]);
        // The first decay is 2 / 11, the second 3 / 12 = 0.25, all later ones 0.25.
        average.add(&[0.0]);
        assert_near(&average.values(), &[16.0 / 11.0]);
        average.add(&[4.0]);
        assert_near(&average.values(), &[4.0 / 11.0 + 3.0]);
        (0..40).for_each(|_| average.add(&[1.0]));
        assert_near(&average.values(), &[1.0]);
    }
}
