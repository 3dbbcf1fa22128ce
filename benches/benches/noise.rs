//! Noise, nanoseconds a coordinate. Target of the exact one: at most 110.

use std::hint::black_box;

use comity_benches::{ThreadCpu, elements};
use comity_privacy::{KeyedNoise, Noise, NoiseKind};
use criterion::{Criterion, criterion_group, criterion_main};

/// One large model's coordinates.
const N_COORDINATES: usize = 1_000_000;
/// σ in grid units as a session draws it.
const LOG2_SIGMA: u32 = 30;

fn noise(criterion: &mut Criterion<ThreadCpu>) {
    let mut noise = KeyedNoise::from_os().expect("the system has randomness");
    let mut values = vec![0_i64; N_COORDINATES];
    let mut group = criterion.benchmark_group("noise");
    group.throughput(elements(N_COORDINATES));
    for (name, kind) in [
        ("exact_gaussian_1e6", NoiseKind::DiscreteGaussian),
        ("float_gaussian_1e6", NoiseKind::FloatGaussian),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                noise.draw(kind, LOG2_SIGMA, black_box(&mut values)).expect("sigma is in range");
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadCpu).sample_size(30);
    targets = noise
}
criterion_main!(benches);
