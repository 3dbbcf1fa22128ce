//! What one question to the accountant costs, and one calibration.

use std::hint::black_box;

use comity_benches::ThreadCpu;
use comity_privacy::{Budget, Mechanism, calibrate_noise_multiplier, epsilon};
use criterion::{Criterion, criterion_group, criterion_main};

fn accountant(criterion: &mut Criterion<ThreadCpu>) {
    let mut group = criterion.benchmark_group("accountant");
    group.bench_function("rdp_query", |bencher| {
        let mechanism = Mechanism::SampledGaussian { q: 0.01, sigma: 1.0, steps: 1000 };
        bencher.iter(|| epsilon(black_box(&[mechanism]), black_box(1e-5)));
    });
    group.bench_function("calibration", |bencher| {
        let budget = Budget::new(3.0, 1e-5).expect("a meaningful budget");
        bencher.iter(|| {
            calibrate_noise_multiplier(black_box(budget), 0.01, 1000, &[])
                .expect("the budget can be met")
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadCpu).sample_size(30);
    targets = accountant
}
criterion_main!(benches);
