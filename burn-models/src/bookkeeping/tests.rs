//! Book-keeping against its oracle: each example by itself through ordinary autodiff.

use chacha20::ChaCha20Rng;
use comity_federation::{Layer, Lora, ModelSpec, Parameters};
use rand_core::{Rng, SeedableRng};

use super::*;
use crate::gradient::autodiff_gradient_sum;
use crate::{Device, gradient_sum};

const CONV: Layer = Layer::Conv2d { out: 4, kernel: 3, stride: 2, padding: 1 };

fn spec(layers: &[Layer]) -> ModelSpec {
    ModelSpec { layers: layers.to_vec() }
}

fn uniform(n: usize, scale: f32, rng: &mut ChaCha20Rng) -> Vec<f32> {
    (0..n).map(|_| scale * ((rng.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0)).collect()
}

/// A model with `layers` and a last linear layer for three classes, and `n` random examples.
fn setting(layers: &[Layer], input: &[usize], n: usize) -> (Model, Batch) {
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    let mut all = layers.to_vec();
    all.push(Layer::Linear { out: 3 });
    let device = Device::flex();
    let mut model = Model::new(&spec(&all), input, 3, &device).unwrap();
    let n_parameters = model.manifest().n_parameters();
    model.load(&Parameters::new(uniform(n_parameters, 0.5, &mut rng))).unwrap();
    let n_features = n * input.iter().product::<usize>();
    let features = match spec(layers).vocabulary() {
        None => uniform(n_features, 2.0, &mut rng),
        // Few tokens, so that they repeat within an example.
        Some(vocabulary) => {
            (0..n_features).map(|_| (rng.next_u32() % vocabulary as u32) as f32).collect()
        }
    };
    let labels = (0..n).map(|_| rng.next_u32() % 3).collect();
    (model, Batch { features, labels })
}

/// Clipped gradients of the examples one by one, summed in f64, and their norms.
fn oracle(model: &Model, batch: &Batch, mask: &[bool], clip: f64) -> (Vec<f64>, Vec<f64>) {
    let alone: Vec<usize> = (0..mask.len()).collect();
    person_oracle(model, batch, mask, &alone, clip)
}

/// Clipped gradients of persons, and their norms by number: the examples one by one through
/// ordinary autodiff, summed in f64.
fn person_oracle(
    model: &Model,
    batch: &Batch,
    mask: &[bool],
    persons: &[usize],
    clip: f64,
) -> (Vec<f64>, Vec<f64>) {
    let n_features = model.n_features();
    let n_parameters = model.manifest().n_trainable();
    let mut sum = vec![0.0; n_parameters];
    let mut norms = Vec::new();
    for person in 0..mask.len() {
        let mut gradient = vec![0.0; n_parameters];
        let mut own = vec![0.0; n_parameters];
        for row in (0..mask.len()).filter(|row| persons[*row] == person) {
            let one = Batch {
                features: batch.features[row * n_features..(row + 1) * n_features].to_vec(),
                labels: vec![batch.labels[row]],
            };
            let mut alone = vec![0.0; n_parameters];
            autodiff_gradient_sum(model, &one, &[true], &mut alone).unwrap();
            for (i, g) in alone.into_iter().enumerate() {
                own[i] += f64::from(g);
                if mask[row] {
                    gradient[i] += f64::from(g);
                }
            }
        }
        norms.push(norm(own.into_iter()));
        let norm = norm(gradient.iter().copied());
        if norm.is_finite() {
            let factor = if norm > clip { clip / norm } else { 1.0 };
            for (sum, g) in sum.iter_mut().zip(gradient) {
                *sum += factor * g;
            }
        }
    }
    (sum, norms)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn assert_equal(name: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let difference = norm(got.iter().zip(expected).map(|(a, b)| f64::from(*a) - b));
    let size = norm(expected.iter().copied());
    assert!(difference <= 3e-6 * size, "{name}: differs by {difference:e} of {size:e}");
}

/// Every layer kind, in the arrangements that differ in arithmetic.
fn cases() -> Vec<(&'static str, Vec<Layer>, Vec<usize>)> {
    use Layer::{
        AvgPool2d, Conv2d, Flatten, Frozen, Gelu, GroupNorm, LayerNorm, Linear, LoraLinear,
        MaxPool2d, MeanPool, PositionEmbedding, Relu, Residual, Standardise, Tanh,
    };
    let image = vec![2, 9, 8];
    let conv = |out, kernel, stride, padding| Conv2d { out, kernel, stride, padding };
    let small = |layers: &[Layer]| [layers, &[Flatten]].concat();
    vec![
        ("linear alone", vec![], vec![7]),
        ("linear, relu", vec![Linear { out: 5 }, Relu, Linear { out: 6 }, Relu], vec![7]),
        ("linear, tanh", vec![Linear { out: 5 }, Tanh], vec![7]),
        ("flatten", vec![Flatten], image.clone()),
        ("flatten twice", vec![Flatten, Flatten], image.clone()),
        ("conv", small(&[conv(3, 3, 1, 0)]), image.clone()),
        ("conv, stride", small(&[conv(3, 2, 3, 0)]), image.clone()),
        ("conv, padding", small(&[conv(3, 3, 1, 2)]), image.clone()),
        ("conv, stride, padding, relu", small(&[CONV, Relu]), image.clone()),
        ("conv that ignores a border", small(&[conv(3, 4, 3, 1), Tanh]), image.clone()),
        ("conv of one position, by Gram", small(&[conv(12, 8, 2, 0)]), image.clone()),
        ("conv, conv", small(&[CONV, Tanh, conv(20, 3, 2, 1), Relu]), image.clone()),
        ("conv by Gram, padded", small(&[CONV, Tanh, conv(32, 3, 2, 1)]), vec![8, 5, 5]),
        ("max pool", small(&[CONV, MaxPool2d { kernel: 2, stride: None }]), image.clone()),
        (
            "overlapping max pool",
            small(&[CONV, Tanh, MaxPool2d { kernel: 2, stride: Some(1) }]),
            image.clone(),
        ),
        (
            "max pool between convs",
            small(&[conv(3, 3, 1, 1), MaxPool2d { kernel: 3, stride: Some(2) }, CONV]),
            image.clone(),
        ),
        ("avg pool", small(&[CONV, AvgPool2d { kernel: 2, stride: None }]), image.clone()),
        (
            "overlapping avg pool",
            small(&[conv(3, 3, 1, 1), AvgPool2d { kernel: 3, stride: Some(2) }, Relu, CONV]),
            image.clone(),
        ),
        ("group norm", small(&[GroupNorm { groups: 1 }]), image.clone()),
        (
            "group norm between convs",
            small(&[conv(4, 3, 1, 1), GroupNorm { groups: 2 }, Relu, CONV, Gelu]),
            image.clone(),
        ),
        ("standardise", small(&[Standardise, CONV]), image.clone()),
        ("standardise a list", vec![Standardise, Linear { out: 6 }, Tanh], vec![7]),
        ("layer norm", vec![LayerNorm, Linear { out: 6 }, LayerNorm, Gelu], vec![7]),
        ("residual", vec![Residual { layers: vec![Linear { out: 7 }, Tanh] }], vec![7]),
        ("residual conv", small(&[Residual { layers: vec![conv(2, 3, 1, 1), Relu] }]), image),
        ("embedding, mean", vec![tokens(5, 4), MeanPool], vec![6]),
        ("embedding, flatten", vec![tokens(50, 4), PositionEmbedding, Flatten], vec![6]),
        ("one token", vec![tokens(5, 3), Flatten], vec![1]),
        ("attention", vec![tokens(9, 6), attention(2, false, None), MeanPool], vec![7]),
        (
            "causal attention by Gram",
            vec![tokens(9, 8), attention(1, true, None), Flatten],
            vec![3],
        ),
        ("transformer", transformer(None), vec![7]),
        ("transformer with LoRA", transformer(Some(LORA)), vec![7]),
        (
            "LoRA alone",
            vec![LoraLinear { out: 9, lora: LORA }, Relu, LoraLinear { out: 5, lora: LORA }],
            vec![7],
        ),
        (
            "frozen features",
            vec![Frozen { layers: vec![Linear { out: 9 }, Tanh] }, LayerNorm],
            vec![7],
        ),
        (
            "frozen between",
            vec![tokens(9, 6), Frozen { layers: transformer(None)[2..].to_vec() }],
            vec![7],
        ),
        (
            "frozen embedding",
            vec![
                Frozen { layers: vec![tokens(9, 6), PositionEmbedding] },
                Linear { out: 5 },
                MeanPool,
            ],
            vec![7],
        ),
    ]
}

const LORA: Lora = Lora { rank: 2, alpha: 3 };

fn tokens(vocabulary: usize, out: usize) -> Layer {
    Layer::Embedding { vocabulary, out }
}

fn attention(heads: usize, causal: bool, lora: Option<Lora>) -> Layer {
    Layer::Attention { heads, causal, lora }
}

/// A transformer of one block with the norm before (Xiong et al. 2020), over 11 tokens.
fn transformer(lora: Option<Lora>) -> Vec<Layer> {
    use Layer::{Gelu, LayerNorm, LoraLinear, MeanPool, PositionEmbedding, Residual};
    let linear = |out| lora.map_or(Layer::Linear { out }, |lora| LoraLinear { out, lora });
    vec![
        tokens(11, 6),
        PositionEmbedding,
        Residual { layers: vec![LayerNorm, attention(2, true, lora)] },
        Residual { layers: vec![LayerNorm, linear(10), Gelu, linear(6)] },
        LayerNorm,
        MeanPool,
    ]
}

#[test]
fn every_layer_kind_equals_the_oracle() {
    for (name, layers, input) in cases() {
        let (model, batch) = setting(&layers, &input, 6);
        let mask = [true, true, false, true, true, true];
        let (_, mut norms) = oracle(&model, &batch, &mask, 1.0);
        norms.sort_by(f64::total_cmp);
        // Clips all, some and none.
        for clip in [norms[0] / 3.0, (norms[2] + norms[3]) / 2.0, norms[5] * 2.0] {
            let (expected, _) = oracle(&model, &batch, &mask, clip);
            let got = clipped_gradient_sum(&model, &batch, &mask, clip).unwrap();
            assert_equal(&format!("{name}, clip {clip:.3}"), &got, &expected);
        }
    }
}

#[test]
fn a_persons_examples_are_clipped_together() {
    // Persons of 3, 2, 2 and 1 examples, one with an example masked, and one masked away.
    let persons = [4, 0, 4, 7, 0, 4, 1, 2, 2];
    let mask = [true, true, true, true, true, true, false, true, false];
    for (name, layers, input) in cases() {
        let (model, batch) = setting(&layers, &input, 9);
        let (_, norms) = person_oracle(&model, &batch, &mask, &persons, 1.0);
        let mut norms: Vec<f64> = norms.into_iter().filter(|norm| *norm > 0.0).collect();
        norms.sort_by(f64::total_cmp);
        for clip in [norms[0] / 3.0, norms[2], norms[4] * 2.0] {
            let (expected, _) = person_oracle(&model, &batch, &mask, &persons, clip);
            let got = clipped_person_gradient_sum(&model, &batch, &mask, &persons, clip).unwrap();
            assert_equal(&format!("{name}, clip {clip:.3}"), &got, &expected);
        }
    }
}

/// Layers of random sizes that fit one another, and the shape of one example.
fn random_layers(rng: &mut ChaCha20Rng) -> (Vec<Layer>, Vec<usize>) {
    let mut below = |n: u32| (rng.next_u32() % n) as usize;
    if below(2) == 0 {
        let channels = 1 + below(3);
        let groups = 1 + below(3);
        let conv = Layer::Conv2d {
            out: groups * (1 + below(4)),
            kernel: 1 + below(3),
            stride: 1 + below(2),
            padding: 0,
        };
        let pool = Layer::MaxPool2d { kernel: 1 + below(2), stride: None };
        let layers = vec![conv, Layer::GroupNorm { groups }, Layer::Tanh, pool, Layer::Flatten];
        return (layers, vec![channels, 5 + below(5), 5 + below(5)]);
    }
    let (heads, positions) = (1 + below(3), 1 + below(9));
    let width = heads * (1 + below(5));
    let lora = (below(2) == 0).then(|| Lora { rank: 1 + below(width as u32), alpha: 2 });
    let block = vec![Layer::LayerNorm, attention(heads, below(2) == 0, lora), Layer::Gelu];
    let layers = vec![
        tokens(1 + below(40), width),
        Layer::PositionEmbedding,
        Layer::Residual { layers: block },
        if below(2) == 0 { Layer::MeanPool } else { Layer::Flatten },
    ];
    (layers, vec![positions])
}

#[test]
fn random_shapes_masks_and_persons_equal_the_oracle() {
    for seed in 0..60 {
        let mut rng = ChaCha20Rng::from_seed([seed; 32]);
        let (layers, input) = random_layers(&mut rng);
        let n = 1 + (rng.next_u32() % 7) as usize;
        let (model, batch) = setting(&layers, &input, n);
        let mask: Vec<bool> = (0..n).map(|_| !rng.next_u32().is_multiple_of(4)).collect();
        let persons: Vec<usize> = (0..n).map(|_| rng.next_u32() as usize % n).collect();
        let (_, norms) = person_oracle(&model, &batch, &mask, &persons, 1.0);
        let clip = norms.iter().sum::<f64>() / n as f64;
        let (expected, _) = person_oracle(&model, &batch, &mask, &persons, clip);
        let got = clipped_person_gradient_sum(&model, &batch, &mask, &persons, clip).unwrap();
        assert_equal(&format!("seed {seed}: {layers:?}, persons"), &got, &expected);
        let (expected, _) = oracle(&model, &batch, &mask, clip);
        let got = clipped_gradient_sum(&model, &batch, &mask, clip).unwrap();
        assert_equal(&format!("seed {seed}: {layers:?}"), &got, &expected);
    }
}

#[test]
fn only_what_is_trained_has_a_gradient() {
    let (model, batch) = setting(&transformer(Some(LORA)), &[7], 3);
    let manifest = model.manifest();
    let frozen = manifest.tensors.iter().filter(|tensor| !tensor.trainable).count();
    assert_eq!(frozen, 2 * 6, "weight and bias of six linear maps");
    assert!(manifest.n_trainable() < manifest.n_parameters());
    let sum = clipped_gradient_sum(&model, &batch, &[true; 3], 0.5).unwrap();
    assert_eq!(sum.len(), manifest.n_trainable());
    assert_eq!(gradient_sum(&model, &batch, &[true; 3]).unwrap().len(), sum.len());
}

#[test]
fn a_token_that_is_none_is_left_out_and_without_privacy_refused() {
    for bad in [-1.0, 11.0, 2.5, f32::NAN, f32::INFINITY, 1e30] {
        let (model, mut batch) = setting(&transformer(None), &[7], 3);
        let (expected, _) = oracle(&model, &batch, &[true, false, true], 0.5);
        batch.features[9] = bad;
        let got = clipped_gradient_sum(&model, &batch, &[true; 3], 0.5).unwrap();
        assert_equal(&format!("token {bad}"), &got, &expected);
        let error = gradient_sum(&model, &batch, &[true; 3]).unwrap_err().to_string();
        assert!(error.contains("whole number below 11"), "{error}");
    }
}

#[test]
fn persons_of_one_example_each_are_examples() {
    for (name, layers, input) in cases() {
        let (model, batch) = setting(&layers, &input, 5);
        let mask = [true, false, true, true, true];
        let alone = clipped_gradient_sum(&model, &batch, &mask, 0.5).unwrap();
        let persons =
            clipped_person_gradient_sum(&model, &batch, &mask, &[4, 4, 0, 2, 1], 0.5).unwrap();
        assert_eq!(alone, persons, "{name}");
    }
}

#[test]
fn one_person_contributes_at_most_the_clipping_norm() {
    for (name, layers, input) in cases() {
        let (model, batch) = setting(&layers, &input, 6);
        let got = clipped_person_gradient_sum(&model, &batch, &[true; 6], &[3; 6], 0.01).unwrap();
        let size = norm(got.iter().map(|v| f64::from(*v)));
        assert!((0.0099..=0.01 * (1.0 + 1e-5)).contains(&size), "{name}: {size}");
    }
}

#[test]
fn a_person_with_an_example_that_is_not_finite_contributes_nothing() {
    for (name, layers, input) in cases() {
        let (model, mut batch) = setting(&layers, &input, 5);
        let persons = [2, 0, 2, 1, 0];
        let (expected, _) =
            person_oracle(&model, &batch, &[true, false, true, true, false], &persons, 0.5);
        let n_features = model.n_features();
        batch.features[n_features..2 * n_features].fill(f32::NAN);
        let got = clipped_person_gradient_sum(&model, &batch, &[true; 5], &persons, 0.5).unwrap();
        assert_equal(name, &got, &expected);
    }
}

#[test]
fn without_clipping_it_is_the_ordinary_gradient() {
    let (model, batch) = setting(&[CONV, Layer::Relu, Layer::Flatten], &[2, 9, 8], 8);
    let ordinary = gradient_sum(&model, &batch, &[true; 8]).unwrap();
    let ordinary: Vec<f64> = ordinary.into_iter().map(f64::from).collect();
    let got = clipped_gradient_sum(&model, &batch, &[true; 8], 1e9).unwrap();
    assert_equal("ordinary", &got, &ordinary);
}

#[test]
fn one_example_contributes_at_most_the_clipping_norm() {
    for (name, layers, input) in cases() {
        let (model, batch) = setting(&layers, &input, 4);
        for row in 0..4 {
            let mask: Vec<bool> = (0..4).map(|i| i == row).collect();
            let got = clipped_gradient_sum(&model, &batch, &mask, 0.01).unwrap();
            let size = norm(got.iter().map(|v| f64::from(*v)));
            assert!(size <= 0.01 * (1.0 + 1e-5), "{name}: {size}");
        }
    }
}

#[test]
fn an_example_that_is_not_finite_contributes_nothing() {
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        for (name, layers, input) in cases() {
            let (model, mut batch) = setting(&layers, &input, 4);
            let n_features = model.n_features();
            let mask = [true, false, true, true];
            let (expected, norms) = oracle(&model, &batch, &mask, 0.5);
            assert!(norms.iter().all(|norm| norm.is_finite()));
            // The masked row becomes bad, and counts: the sum must not change.
            batch.features[n_features..2 * n_features].fill(bad);
            let got = clipped_gradient_sum(&model, &batch, &[true; 4], 0.5).unwrap();
            assert!(got.iter().all(|v| v.is_finite()), "{name}");
            if bad != f32::MAX {
                assert_equal(&format!("{name} with {bad}"), &got, &expected);
            }
        }
    }
}

#[test]
fn one_bad_feature_is_enough_to_be_dropped() {
    let (model, mut batch) = setting(&[CONV, Layer::Relu, Layer::Flatten], &[2, 9, 8], 3);
    let (expected, _) = oracle(&model, &batch, &[true, false, true], 0.5);
    batch.features[144 + 70] = f32::NAN;
    let got = clipped_gradient_sum(&model, &batch, &[true; 3], 0.5).unwrap();
    assert_equal("one NaN", &got, &expected);
}

#[test]
fn an_empty_batch_and_a_batch_of_padding_are_zero() {
    let (model, batch) = setting(&[CONV, Layer::Flatten], &[2, 9, 8], 3);
    let zeros = vec![0.0; model.manifest().n_trainable()];
    assert_eq!(clipped_gradient_sum(&model, &batch, &[false; 3], 1.0).unwrap(), zeros);
    let empty = Batch { features: vec![], labels: vec![] };
    assert_eq!(clipped_gradient_sum(&model, &empty, &[], 1.0).unwrap(), zeros);
}

#[test]
fn features_of_another_size_are_refused() {
    let (model, mut batch) = setting(&[Layer::Flatten], &[2, 9, 8], 3);
    batch.features.pop();
    let error = clipped_gradient_sum(&model, &batch, &[true; 3], 1.0).unwrap_err();
    assert!(matches!(error, TrainError::Features { expected: 144, .. }), "{error}");
}
