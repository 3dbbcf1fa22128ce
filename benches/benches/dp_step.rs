//! A DP-SGD step by book-keeping against the ordinary step on the same examples, both on one
//! thread. Target: at most 1.25 times.
//!
//! `clipped` is the step without its noise, which is what other libraries' ratios are about;
//! `private` is all of it.
//!
//! A step is a batch in microbatches, as the trainer takes it: gradients summed in f64; with
//! privacy, exact noise on every coordinate. Sampling is left out of both (microseconds).

use std::hint::black_box;

use comity_benches::{ThreadCpu, elements, small_cnn};
use comity_burn_models::{Device, Model, clipped_gradient_sum, gradient_sum};
use comity_datasets::Batch;
use comity_federation::{Layer, ModelSpec, Plan};
use comity_privacy::{KeyedNoise, Noise, NoiseKind};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use mimalloc::MiMalloc;

/// As in the client and the simulator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const BATCH: usize = 512;
const MICROBATCH: usize = 128;
const CLIP_NORM_L2: f64 = 0.1;
const LOG2_SIGMA: u32 = 30;
const SEED: u64 = 1;

/// One block of width 64 over 49 tokens of a vocabulary of 256.
fn transformer() -> ModelSpec {
    let residual = |layers| Layer::Residual { layers };
    let attention = Layer::Attention { heads: 4, causal: false, lora: None };
    ModelSpec {
        layers: vec![
            Layer::Embedding { vocabulary: 256, out: 64 },
            Layer::PositionEmbedding,
            residual(vec![Layer::LayerNorm, attention]),
            residual(vec![
                Layer::LayerNorm,
                Layer::Linear { out: 128 },
                Layer::Gelu,
                Layer::Linear { out: 64 },
            ]),
            Layer::LayerNorm,
            Layer::MeanPool,
            Layer::Linear { out: 10 },
        ],
    }
}

fn plan() -> Plan {
    Plan::from_toml(include_str!("../../examples/fashion/plan.toml")).expect("the plan is valid")
}

fn mlp() -> ModelSpec {
    ModelSpec {
        layers: vec![
            Layer::Flatten,
            Layer::Linear { out: 256 },
            Layer::Relu,
            Layer::Linear { out: 10 },
        ],
    }
}

/// Examples of no meaning: tokens, or values in [-1, 1).
fn microbatch(n_features: usize, n_classes: usize, is_tokens: bool) -> Batch {
    let features = (0..MICROBATCH * n_features).map(|i| (i * 7919 % 256) as f32);
    let features = features.map(|value| if is_tokens { value } else { value / 128.0 - 1.0 });
    let labels = (0..MICROBATCH).map(|i| (i * 31 % n_classes) as u32);
    Batch { features: features.collect(), labels: labels.collect() }
}

fn step(gradient: impl Fn() -> Vec<f32>, n_parameters: usize) -> Vec<f64> {
    let mut sum = vec![0.0; n_parameters];
    for _ in 0..BATCH / MICROBATCH {
        for (sum, value) in sum.iter_mut().zip(gradient()) {
            *sum += f64::from(value);
        }
    }
    sum
}

fn dp_step(criterion: &mut Criterion<ThreadCpu>) {
    let plan = plan();
    let mask = [true; MICROBATCH];
    let image = plan.data.shape.clone();
    for (name, spec, shape) in [
        ("cnn", plan.model.clone(), image.clone()),
        ("mlp", mlp(), image.clone()),
        ("small_cnn", small_cnn(), image),
        ("transformer", transformer(), vec![49]),
    ] {
        let device = Device::flex().autodiff();
        let mut model =
            Model::new(&spec, &shape, plan.data.classes, &device).expect("the layers fit the data");
        let n_parameters = model.manifest().n_trainable();
        model.load(&model.manifest().initial_parameters(SEED)).expect("they fit the model");
        let batch = microbatch(model.n_features(), plan.data.classes, spec.vocabulary().is_some());
        let mut noise = KeyedNoise::from_os().expect("the system has randomness");

        let mut group = criterion.benchmark_group(format!("dp_step/{name}"));
        group.throughput(elements(BATCH)).sampling_mode(SamplingMode::Flat);
        group.bench_function("ordinary", |bencher| {
            bencher.iter(|| {
                step(
                    || gradient_sum(&model, black_box(&batch), &mask).expect("it fits"),
                    n_parameters,
                )
            });
        });
        let clipped = || {
            step(
                || {
                    clipped_gradient_sum(&model, black_box(&batch), &mask, CLIP_NORM_L2)
                        .expect("it fits")
                },
                n_parameters,
            )
        };
        group.bench_function("clipped", |bencher| bencher.iter(clipped));
        group.bench_function("private", |bencher| {
            bencher.iter(|| {
                let sum = clipped();
                let mut values = vec![0; sum.len()];
                let kind = NoiseKind::for_parameters(n_parameters as u64);
                noise.draw(kind, LOG2_SIGMA, &mut values).expect("sigma is in range");
                (sum, values)
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadCpu).sample_size(15);
    targets = dp_step
}
criterion_main!(benches);
