//! Local training without differential privacy as a client does it, on one thread: all of `train_plain`,
//! from the round's model to the trained one. Target: at least PyTorch's samples a core-second
//! (`../peers/torch_cnn.py`, in the same run).
//!
//! A client of 600 examples is one of a hundred of Fashion-MNIST, one of 60 examples one of a thousand.

use std::num::NonZero;

use comity_benches::{ThreadCpu, elements, small_cnn};
use comity_burn_models::{Device, TrainingTask, evaluate, train_plain};
use comity_datasets::{Contract, Dataset, Normalise, Scale};
use comity_federation::{Optimizer, Training};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use mimalloc::MiMalloc;

/// As in the client and the simulator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const SEED: u64 = 1;
const NORMALISE: Normalise = Normalise { mean: 0.286, std: 0.353 };

/// Images of no meaning.
fn dataset(n: usize) -> Dataset {
    let contract = Contract { shape: vec![1, 28, 28], n_classes: 10, scale: Scale::Bytes };
    let features = (0..n * 784).map(|i| (i * 7919 % 251) as u8).collect();
    let labels = (0..n).map(|i| (i * 31 % 10) as u32).collect();
    Dataset::from_bytes(&contract, features, labels).expect("the sizes fit")
}

fn local_training(criterion: &mut Criterion<ThreadCpu>) {
    let (spec, device) = (small_cnn(), Device::flex());
    let manifest = spec.manifest(&[1, 28, 28], 10).expect("the layers fit");
    assert_eq!(manifest.n_parameters(), 56_714);
    let start = manifest.initial_parameters(SEED);
    let training = Training {
        optimizer: Optimizer::Sgd { learning_rate: 0.1, momentum: 0.0 },
        batch: 32,
        local_epochs: Some(1),
        local_steps: None,
        microbatch: 32,
        ema_decay: None,
    };
    let mut group = criterion.benchmark_group("local_training");
    group.sampling_mode(SamplingMode::Flat);
    for n in [60, 600, 6_000] {
        let dataset = dataset(n);
        let task = TrainingTask {
            spec: &spec,
            start: &start,
            dataset: &dataset,
            normalise: NORMALISE,
            training: &training,
            n_steps: None,
            correction: None,
            device: &device,
            n_threads: NonZero::<usize>::MIN,
        };
        group.throughput(elements(n));
        group.bench_function(format!("epoch_{n}"), |bencher| {
            bencher.iter(|| train_plain(&task, [1; 32], &mut |_, _| {}).expect("it is trained"));
        });
    }
    let test = dataset(2_000);
    group.throughput(elements(test.len()));
    group.bench_function("evaluate", |bencher| {
        bencher.iter(|| {
            let one = NonZero::<usize>::MIN;
            evaluate(&spec, &start, &test, NORMALISE, &device, 500, one).expect("it is scored")
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadCpu).sample_size(15);
    targets = local_training
}
criterion_main!(benches);
