//! What questions to the accountant cost, and one calibration. Targets: median query over the 26 points
//! of the reference table at most 100 ms, and at most 200 MB.

use std::hint::black_box;

use comity_benches::{ThreadCpu, memory_peak_bytes};
use comity_privacy::{
    Budget, FixedSchedule, Mechanism, Relation, calibrate_noise_multiplier, epsilon,
};
use criterion::measurement::Measurement;
use criterion::{Criterion, criterion_group, criterion_main};

/// The points of the reference table: sampling rate, noise multiplier, steps, δ.
fn points() -> Vec<(FixedSchedule, f64)> {
    include_str!("../../privacy/tests/data/accounting_reference.csv")
        .lines()
        .skip(1)
        .map(|line| {
            let mut cells = line.split(',');
            let mut number = || -> f64 {
                cells.next().and_then(|cell| cell.parse().ok()).expect("the table holds numbers")
            };
            let (q, sigma, steps, delta) = (number(), number(), number() as u64, number());
            let mechanism = Mechanism::SampledGaussian { q, sigma, steps };
            (FixedSchedule::declared(vec![mechanism]), delta)
        })
        .collect()
}

/// Each point once: its time, then the median and the process's memory.
fn table() {
    let mut seconds: Vec<f64> = points()
        .iter()
        .map(|(schedule, delta)| {
            let start = ThreadCpu.start();
            let report = epsilon(schedule, Relation::AddOrRemoveOne, *delta);
            let spent = ThreadCpu.end(start).as_secs_f64();
            println!(
                "{spent:8.3} s  epsilon {:12.6}  {:?}",
                report.epsilon,
                schedule.mechanisms()[0]
            );
            spent
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!(
        "median query {:.3} s, longest {:.3} s, {} points; memory peak {:.0} MB",
        seconds[seconds.len() / 2],
        seconds[seconds.len() - 1],
        seconds.len(),
        memory_peak_bytes().unwrap_or_default() as f64 / 1e6,
    );
}

fn accountant(criterion: &mut Criterion<ThreadCpu>) {
    table();
    let mut group = criterion.benchmark_group("accountant");
    group.sample_size(10);
    group.bench_function("query", |bencher| {
        let mechanism = Mechanism::SampledGaussian { q: 0.01, sigma: 1.0, steps: 1000 };
        let schedule = FixedSchedule::declared(vec![mechanism]);
        bencher.iter(|| epsilon(black_box(&schedule), Relation::AddOrRemoveOne, black_box(1e-5)));
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
    config = Criterion::default().with_measurement(ThreadCpu);
    targets = accountant
}
criterion_main!(benches);
