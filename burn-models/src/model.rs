//! The plan's model on a device.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::activation;
use burn::tensor::{Int, Tensor, TensorData};
use comity_datasets::Batch;
use comity_federation::{Manifest, ModelSpec, Parameters};

use crate::cpu::{Network, Weights, Workspace};
use crate::layers::{Backward, Builder, Operation, Signal, forward_all, trace_all};
use crate::{Device, TrainError};

/// A model on a device.
#[derive(Clone, Debug)]
pub struct Model {
    spec: ModelSpec,
    /// All parameters, in the manifest's order.
    values: Vec<f32>,
    /// Those after the front, with these parameters as tensors, once somebody needs them.
    layers: OnceLock<Vec<Operation>>,
    cpu: Option<Cpu>,
    /// Shape of one example after the front.
    input: Vec<usize>,
    n_classes: usize,
    /// Number of tokens, where features are tokens.
    vocabulary: Option<usize>,
    manifest: Manifest,
    device: Device,
}

/// A model that the processor computes without tensors.
#[derive(Clone, Debug)]
struct Cpu {
    network: Arc<Network>,
    /// With the model's parameters, once somebody needs them.
    weights: OnceLock<Weights>,
    /// Of threads that are done.
    workspaces: Arc<Mutex<Vec<Workspace>>>,
}

impl Model {
    /// The model of `spec` for examples of shape `input`, all parameters zero, on `device`.
    ///
    /// Where `spec` begins with a front (scattering), the model begins after it: features are then
    /// those that the front gives.
    ///
    /// Parameters stay outside of autodiff. Each pass that needs gradients makes leaves of its
    /// own: leaves shared between threads would join their graphs, and burn then refuses the
    /// second backward pass ("graph tape has already been consumed").
    ///
    /// # Errors
    /// [`TrainError::Plan`] if the layers do not fit `input` or `n_classes`.
    pub fn new(
        spec: &ModelSpec,
        input: &[usize],
        n_classes: usize,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let manifest = spec.manifest(input, n_classes)?;
        let device = device.clone().inner();
        let n_front = spec.n_front();
        let input = match n_front {
            0 => input.to_vec(),
            n => spec.shapes(input)?[n - 1].clone(),
        };
        let network = (device == Device::flex())
            .then(|| Network::new(&spec.layers, n_front, &input, &manifest))
            .flatten();
        let cpu = network.map(|network| Cpu {
            network: Arc::new(network),
            weights: OnceLock::new(),
            workspaces: Arc::default(),
        });
        Ok(Self {
            spec: spec.clone(),
            values: vec![0.0; manifest.n_parameters()],
            layers: OnceLock::new(),
            cpu,
            input,
            n_classes,
            vocabulary: spec.vocabulary(),
            manifest,
            device,
        })
    }

    /// The layers after the front, on the device.
    fn layers(&self) -> &[Operation] {
        self.layers.get_or_init(|| {
            let builder = Builder::new(&self.manifest, &self.values, &self.device);
            builder.layers(&self.spec.layers, self.spec.n_front(), "")
        })
    }

    /// Whether [`on_cpu`](Self::on_cpu) computes this model.
    pub(crate) fn is_without_tensors(&self) -> bool {
        self.cpu.is_some()
    }

    /// Computes without tensors, where the model is of such layers and on the CPU.
    pub(crate) fn on_cpu<T>(
        &self,
        compute: impl FnOnce(&Network, &Weights, &mut Workspace) -> T,
    ) -> Option<T> {
        let cpu = self.cpu.as_ref()?;
        let weights = cpu.weights.get_or_init(|| {
            let mut weights = cpu.network.weights();
            cpu.network.pack(&self.values, &mut weights);
            weights
        });
        let workspaces = || cpu.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = workspaces().pop().unwrap_or_default();
        let result = compute(&cpu.network, weights, &mut workspace);
        workspaces().push(workspace);
        Some(result)
    }

    /// The model's tensors, in the order of [`Parameters`].
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the model is.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of features of one example, after the front.
    #[must_use]
    pub fn n_features(&self) -> usize {
        self.input.iter().product()
    }

    /// Sets all parameters.
    ///
    /// # Errors
    /// [`TrainError::Parameters`] if their number is another; the model is then unchanged.
    pub fn load(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        self.load_values(parameters.values())
    }

    pub(crate) fn load_values(&mut self, values: &[f32]) -> Result<(), TrainError> {
        let expected = self.manifest.n_parameters();
        if values.len() != expected {
            return Err(TrainError::Parameters { expected, got: values.len() });
        }
        self.values.copy_from_slice(values);
        self.layers.take();
        if let Some(cpu) = &mut self.cpu
            && let Some(weights) = cpu.weights.get_mut()
        {
            cpu.network.pack(values, weights);
        }
        Ok(())
    }

    /// All parameters, in the manifest's order.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        Parameters::new(self.values.clone())
    }

    /// Scores of `features`, `[n, n_features]`, for each class: `[n, n_classes]`.
    #[must_use]
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        forward_all(self.layers(), Signal::of_examples(features, &self.input)).rows()
    }

    /// As [`forward`](Self::forward), with the way back for book-keeping.
    pub(crate) fn trace(&self, features: Tensor<2>) -> (Tensor<2>, Backward) {
        let input = Signal::of_examples(features, &self.input);
        let (logits, back) = trace_all(self.layers(), input, false);
        (logits.rows(), back)
    }

    /// As [`forward`](Self::forward) with features that autodiff tracks, and the layers whose trained
    /// parameters it tracks too.
    pub(crate) fn track(&self, features: Tensor<2>) -> (Tensor<2>, Vec<Operation>) {
        let mut layers = self.layers().to_vec();
        for mut parameter in layers.iter_mut().flat_map(Operation::parameters_mut) {
            parameter.track();
        }
        let input = Signal::of_examples(features.autodiff(), &self.input);
        (forward_all(&layers, input).rows(), layers)
    }

    /// The batch's features on the model's device, `[n, n_features]`.
    ///
    /// # Errors
    /// [`TrainError::Features`] if the examples have another size than the model's input.
    pub(crate) fn features(&self, batch: &Batch) -> Result<Tensor<2>, TrainError> {
        self.check_features(batch)?;
        let shape = [batch.labels.len(), self.n_features()];
        Ok(Tensor::from_data(TensorData::new(batch.features.clone(), shape), &self.device))
    }

    /// Refuses examples of another size than the model's input.
    ///
    /// # Errors
    /// [`TrainError::Features`].
    pub(crate) fn check_features(&self, batch: &Batch) -> Result<(), TrainError> {
        let n = batch.labels.len();
        let expected = self.n_features();
        if batch.features.len() == n * expected {
            Ok(())
        } else {
            Err(TrainError::Features { expected, got: batch.features.len() / n.max(1) })
        }
    }

    /// Refuses features that are none of the vocabulary's tokens, where the model reads tokens.
    ///
    /// Not for training with differential privacy, which leaves such an example out as any other
    /// that is not finite: a failure would tell of it.
    ///
    /// # Errors
    /// [`TrainError::Token`].
    pub(crate) fn check_tokens(&self, batch: &Batch) -> Result<(), TrainError> {
        let Some(vocabulary) = self.vocabulary else {
            return Ok(());
        };
        let is_token =
            |value: &f32| value.fract() == 0.0 && (0.0..vocabulary as f32).contains(value);
        if batch.features.iter().all(is_token) {
            Ok(())
        } else {
            Err(TrainError::Token { vocabulary })
        }
    }

    /// A row for each example with one at its label and zero elsewhere, `[n, n_classes]`.
    pub(crate) fn unit_vectors(&self, batch: &Batch) -> Tensor<2> {
        let n = batch.labels.len();
        let mut values = vec![0.0; n * self.n_classes];
        for (row, label) in values.chunks_exact_mut(self.n_classes).zip(&batch.labels) {
            row[*label as usize] = 1.0;
        }
        Tensor::from_data(TensorData::new(values, [n, self.n_classes]), &self.device)
    }

    /// The batch's labels on the model's device, `[n, 1]`.
    pub(crate) fn labels(&self, batch: &Batch) -> Tensor<2, Int> {
        let labels: Vec<i32> = batch.labels.iter().map(|label| *label as i32).collect();
        Tensor::from_data(TensorData::new(labels, [batch.labels.len(), 1]), &self.device)
    }
}

/// Cross-entropy of each example, `[n, 1]`, from scores and labels `[n, 1]`.
pub(crate) fn cross_entropy(logits: Tensor<2>, labels: Tensor<2, Int>) -> Tensor<2> {
    activation::log_softmax(logits, 1).gather(1, labels).neg()
}

/// Copies a tensor to memory.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("all our tensors are of f32")
}
