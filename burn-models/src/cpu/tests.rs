//! Each stage against burn's autodiff, in the arrangements that differ in arithmetic; one model against
//! differences.

use chacha20::ChaCha20Rng;
use comity_datasets::Batch;
use comity_federation::{Layer, ModelSpec, Parameters};
use fearless_simd::{Level, Simd};
use rand_core::{Rng, SeedableRng};

use super::Network;
use crate::gradient::autodiff_gradient_sum;
use crate::{Device, Model, gradient_sum};

fn uniform(n: usize, scale: f32, rng: &mut ChaCha20Rng) -> Vec<f32> {
    (0..n).map(|_| scale * ((rng.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0)).collect()
}

/// A model with `layers` and a last linear layer for `n_classes`, with random parameters.
fn model(layers: &[Layer], input: &[usize], n_classes: usize, rng: &mut ChaCha20Rng) -> Model {
    let mut layers = layers.to_vec();
    layers.push(Layer::Linear { out: n_classes });
    let spec = ModelSpec { layers };
    let mut model = Model::new(&spec, input, n_classes, &Device::flex()).unwrap();
    let values = model.manifest().tensors.iter().flat_map(|tensor| {
        let fan_in = tensor.n_elements() / tensor.shape[0];
        uniform(tensor.n_elements(), 1.5 / (fan_in as f32).sqrt(), rng)
    });
    // Standard deviations are divided by: none is near zero.
    let values = values.map(|value| if value.abs() < 0.01 { 0.3 } else { value });
    model.load(&Parameters::new(values.collect())).unwrap();
    model
}

fn batch(model: &Model, n: usize, n_classes: u32, rng: &mut ChaCha20Rng) -> Batch {
    Batch {
        features: uniform(n * model.n_features(), 2.0, rng),
        labels: (0..n).map(|_| rng.next_u32() % n_classes).collect(),
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// Relative to the size of all: the two sum in different orders.
const TOLERANCE: f64 = 2e-6;

/// The same where one value of a hundred thousand may round to the other side of a kink.
const TOLERANCE_AT_KINKS: f64 = 1e-4;

fn tolerance(layers: &[Layer]) -> f64 {
    let has_kink = |layer: &Layer| match layer {
        Layer::Relu | Layer::MaxPool2d { .. } => true,
        Layer::Frozen { layers } => tolerance(layers) == TOLERANCE_AT_KINKS,
        _ => false,
    };
    if layers.iter().any(has_kink) { TOLERANCE_AT_KINKS } else { TOLERANCE }
}

fn assert_near(name: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let difference = norm(got.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(expected.iter().map(|value| f64::from(*value)));
    assert!(difference <= tolerance * size, "{name}: differs by {difference:e} of {size:e}");
}

fn assert_equals_autodiff(name: &str, model: &Model, batch: &Batch, mask: &[bool], tolerance: f64) {
    assert!(model.on_cpu(|_, _, _| ()).is_some(), "{name} is not computed here");
    let mut expected = vec![0.0; model.manifest().n_trainable()];
    autodiff_gradient_sum(model, batch, mask, &mut expected).unwrap();
    assert_near(name, &gradient_sum(model, batch, mask).unwrap(), &expected, tolerance);
}

fn conv(out: usize, kernel: usize, stride: usize, padding: usize) -> Layer {
    Layer::Conv2d { out, kernel, stride, padding }
}

fn max(kernel: usize, stride: usize) -> Layer {
    Layer::MaxPool2d { kernel, stride: Some(stride) }
}

fn avg(kernel: usize, stride: usize) -> Layer {
    Layer::AvgPool2d { kernel, stride: Some(stride) }
}

/// Layers, and the shape of their input.
fn cases() -> Vec<(&'static str, Vec<Layer>, Vec<usize>)> {
    use Layer::{Flatten, Frozen, Gelu, GroupNorm, LayerNorm, Linear, Relu, Standardise, Tanh};
    let image = vec![2, 11, 9];
    let benchmark = vec![
        conv(16, 3, 1, 0),
        Relu,
        max(2, 2),
        conv(32, 3, 1, 0),
        Relu,
        max(2, 2),
        Flatten,
        Linear { out: 64 },
        Relu,
    ];
    let flat = |layers: &[Layer]| [layers, &[Flatten]].concat();
    vec![
        ("linear alone", vec![], vec![7]),
        ("linear of one", vec![], vec![1]),
        ("wide linear", vec![Linear { out: 70 }, Relu, Linear { out: 33 }, Tanh], vec![129]),
        ("gelu", vec![Linear { out: 17 }, Gelu, Linear { out: 16 }, Gelu], vec![5]),
        ("functions of functions", vec![Linear { out: 9 }, Relu, Tanh, Gelu, Tanh], vec![5]),
        ("a function first", vec![Tanh, Linear { out: 9 }], vec![5]),
        ("flatten of a gray image", vec![Flatten, Linear { out: 20 }, Relu], vec![1, 6, 5]),
        ("flatten of colours", vec![Flatten, Linear { out: 20 }, Relu], vec![3, 6, 5]),
        ("flatten twice", vec![Flatten, Flatten], image.clone()),
        ("the benchmark's network", benchmark.clone(), vec![1, 28, 28]),
        ("the benchmark's network in colours", benchmark, vec![3, 24, 25]),
        ("conv", flat(&[conv(3, 3, 1, 0)]), image.clone()),
        ("conv of one pixel", flat(&[conv(5, 1, 1, 0), Tanh]), image.clone()),
        ("conv to one pixel", flat(&[conv(5, 9, 3, 0), Tanh]), image.clone()),
        ("conv, stride", flat(&[conv(3, 2, 3, 0)]), image.clone()),
        ("conv, padding", flat(&[conv(3, 3, 1, 2), Relu]), image.clone()),
        ("conv that ignores a border", flat(&[conv(3, 4, 3, 1), Tanh]), image.clone()),
        ("convs", flat(&[conv(20, 3, 1, 1), Tanh, conv(33, 3, 2, 1), Relu]), image.clone()),
        ("convs of strides", flat(&[conv(17, 4, 2, 1), conv(16, 2, 3, 0)]), vec![1, 13, 14]),
        ("max pool alone", flat(&[max(2, 2)]), image.clone()),
        ("max pool", flat(&[conv(4, 3, 2, 1), max(2, 2)]), image.clone()),
        ("overlapping max pool", flat(&[conv(4, 3, 1, 1), Tanh, max(2, 1)]), image.clone()),
        ("max pool over a stride", flat(&[conv(4, 3, 1, 1), Tanh, max(2, 3)]), image.clone()),
        (
            "sparse",
            flat(&[conv(4, 3, 1, 1), max(2, 2), conv(70, 3, 1, 1), Relu, max(2, 2)]),
            vec![1, 12, 12],
        ),
        (
            "sparse and overlapping",
            flat(&[conv(20, 3, 1, 1), Relu, conv(21, 3, 1, 0), Tanh, max(3, 2)]),
            image.clone(),
        ),
        (
            "sparse behind what is frozen",
            flat(&[
                Frozen { layers: vec![conv(16, 3, 1, 1), Relu] },
                conv(16, 3, 1, 0),
                Relu,
                max(3, 3),
            ]),
            image.clone(),
        ),
        ("avg pool", flat(&[conv(4, 3, 1, 1), avg(2, 2)]), image.clone()),
        (
            "overlapping avg pool",
            flat(&[conv(18, 3, 1, 1), avg(3, 2), Relu, conv(4, 2, 1, 0)]),
            image.clone(),
        ),
        ("group norm alone", flat(&[GroupNorm { groups: 1 }]), image.clone()),
        (
            "group norm between convs",
            flat(&[
                conv(4, 3, 1, 1),
                GroupNorm { groups: 2 },
                Relu,
                conv(6, 3, 2, 1),
                GroupNorm { groups: 3 },
                Gelu,
            ]),
            image.clone(),
        ),
        ("layer norm", vec![LayerNorm, Linear { out: 6 }, LayerNorm, Gelu], vec![7]),
        ("standardise", flat(&[Standardise, conv(4, 3, 1, 1), Relu]), image.clone()),
        ("standardise gray", vec![Standardise, Flatten, Linear { out: 4 }], vec![1, 4, 4]),
        ("standardise a list", vec![Standardise, Linear { out: 6 }, Tanh], vec![7]),
        (
            "frozen between",
            flat(&[
                conv(4, 3, 1, 1),
                Frozen { layers: vec![GroupNorm { groups: 2 }, conv(5, 3, 1, 0), Relu, max(2, 2)] },
                conv(4, 2, 1, 0),
            ]),
            image.clone(),
        ),
        (
            "frozen before",
            [
                flat(&[Frozen { layers: vec![conv(5, 3, 1, 0), Relu, max(2, 2)] }]),
                vec![Linear { out: 8 }, Relu],
            ]
            .concat(),
            image,
        ),
    ]
}

#[test]
fn gradients_are_those_of_autodiff() {
    let mut rng = ChaCha20Rng::from_seed([9; 32]);
    for (name, layers, input) in cases() {
        let model = model(&layers, &input, 3, &mut rng);
        for n in [1, 2, 5, 33] {
            let batch = batch(&model, n, 3, &mut rng);
            let all = vec![true; n];
            assert_equals_autodiff(name, &model, &batch, &all, tolerance(&layers));
            let some: Vec<bool> = (0..n).map(|_| rng.next_u32() % 3 > 0).collect();
            assert_equals_autodiff(name, &model, &batch, &some, tolerance(&layers));
        }
        let none = batch(&model, 3, 3, &mut rng);
        let sum = gradient_sum(&model, &none, &[false; 3]).unwrap();
        assert!(sum.iter().all(|value| *value == 0.0), "{name}");
    }
}

#[test]
fn a_gradient_is_that_of_differences() {
    let mut rng = ChaCha20Rng::from_seed([4; 32]);
    let layers = [conv(4, 3, 1, 1), Layer::Tanh, avg(2, 2), conv(5, 2, 1, 0), Layer::Flatten];
    let mut model = model(&layers, &[2, 6, 6], 3, &mut rng);
    let batch = batch(&model, 4, 3, &mut rng);
    let gradient = gradient_sum(&model, &batch, &[true; 4]).unwrap();
    let before = model.parameters().values().to_vec();
    let mut loss = |values: Vec<f32>| {
        model.load(&Parameters::new(values)).unwrap();
        let mut sum = 0.0;
        model.on_cpu(|network, weights, workspace| {
            let take = |_: &[f32], _, loss| sum += f64::from(loss);
            network.score(weights, workspace, &batch.features, &batch.labels, take);
        });
        sum
    };
    for (index, slope) in gradient.iter().enumerate() {
        let mut moved = |by: f32| {
            let mut values = before.clone();
            values[index] += by;
            loss(values)
        };
        let expected = (moved(0.01) - moved(-0.01)) / 0.02;
        let error = (f64::from(*slope) - expected).abs();
        assert!(error < 2e-3 * expected.abs().max(1.0), "{index}: {slope} {expected}");
    }
}

/// The instructions that this machine has, from wide to narrow, and whether they multiply and add at once.
fn levels() -> Vec<(Level, bool)> {
    let level = Level::new();
    let mut levels = vec![(level, true)];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(level.as_avx2().map(|simd| (simd.level(), true)));
        levels.extend(level.as_sse4_2().map(|simd| (simd.level(), false)));
        levels.extend(level.as_sse2().map(|simd| (simd.level(), false)));
    }
    levels
}

#[test]
fn the_width_of_vectors_changes_no_bit() {
    let mut rng = ChaCha20Rng::from_seed([8; 32]);
    for (name, layers, input) in cases() {
        let model = model(&layers, &input, 3, &mut rng);
        let batch = batch(&model, 5, 3, &mut rng);
        let gradient = |level| {
            let mut sum = vec![0.0; model.manifest().n_trainable()];
            model.on_cpu(|network, weights, workspace| {
                let network = Network { level, ..network.clone() };
                let (features, labels) = (&batch.features, &batch.labels);
                network.gradient_sum(weights, workspace, features, labels, &[true; 5], &mut sum);
            });
            sum
        };
        let expected = gradient(Level::new());
        for (level, is_fused) in levels() {
            let got = gradient(level);
            assert_near(name, &got, &expected, tolerance(&layers));
            // Without AVX2 the first of them does not multiply and add at once either.
            if is_fused && levels()[1..].iter().any(|(_, is_fused)| *is_fused) {
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(bits(&got) == bits(&expected), "{name} on {level:?}");
            }
        }
    }
}

#[test]
fn a_score_does_not_depend_on_the_examples_beside_it() {
    let mut rng = ChaCha20Rng::from_seed([2; 32]);
    for (name, layers, input) in cases() {
        let model = model(&layers, &input, 4, &mut rng);
        let batch = batch(&model, 70, 4, &mut rng);
        let scores = |features: &[f32], labels: &[u32]| {
            let mut all = Vec::new();
            model.on_cpu(|network, weights, workspace| {
                network.score(weights, workspace, features, labels, |scores, _, loss| {
                    all.extend(scores.iter().chain([&loss]).map(|value| value.to_bits()));
                });
            });
            all
        };
        let together = scores(&batch.features, &batch.labels);
        let n = model.n_features();
        let alone = batch.features.chunks(n).zip(&batch.labels);
        let alone: Vec<u32> = alone.flat_map(|(x, label)| scores(x, &[*label])).collect();
        assert_eq!(together, alone, "{name}");
    }
}

#[test]
fn a_model_keeps_no_weights_of_before() {
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let layers = [conv(4, 3, 1, 0), Layer::Relu, max(2, 2), Layer::Flatten];
    let mut one = model(&layers, &[1, 8, 8], 3, &mut rng);
    let other = model(&layers, &[1, 8, 8], 3, &mut rng);
    let batch = batch(&one, 9, 3, &mut rng);
    let before = gradient_sum(&one, &batch, &[true; 9]).unwrap();
    let kept = one.clone();
    one.load(&other.parameters()).unwrap();
    let expected = gradient_sum(&other, &batch, &[true; 9]).unwrap();
    assert_eq!(gradient_sum(&one, &batch, &[true; 9]).unwrap(), expected);
    assert_eq!(gradient_sum(&kept, &batch, &[true; 9]).unwrap(), before);
    assert_ne!(before, expected);
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let mut rng = ChaCha20Rng::from_seed([6; 32]);
    for (name, layers, input) in cases() {
        let model = model(&layers, &input, 3, &mut rng);
        let mut batch = batch(&model, 2, 3, &mut rng);
        let middle = model.n_features() / 2;
        batch.features[middle] = f32::NAN;
        let sum = gradient_sum(&model, &batch, &[true; 2]).unwrap();
        assert!(sum.iter().any(|value| value.is_nan()), "{name}");
        // The other example is not touched by it.
        let sum = gradient_sum(&model, &batch, &[false, true]).unwrap();
        assert!(sum.iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn other_layers_go_burns_way() {
    let residual = Layer::Residual { layers: vec![Layer::Linear { out: 4 }] };
    for (layers, input) in [
        (vec![residual], vec![4]),
        (vec![Layer::Embedding { vocabulary: 5, out: 4 }, Layer::MeanPool], vec![3]),
        (vec![Layer::Linear { out: 3 }, Layer::MeanPool], vec![6, 2]),
    ] {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let model = model(&layers, &input, 3, &mut rng);
        assert!(model.on_cpu(|_, _, _| ()).is_none(), "{layers:?}");
    }
}
