//! Prints how fast clipped and ordinary gradients are on this machine's CPU, for the
//! demonstration's network with three kinds of pooling, and how fast a whole epoch is.
//!
//! `cargo run -p comity-burn-models --example speed`

use std::time::Instant;

use comity_burn_models::{
    Device, Model, TrainingTask, clipped_gradient_sum, gradient_sum, train_plain,
};
use comity_datasets::{Batch, Contract, Dataset, Normalise, Scale};
use comity_federation::{Layer, ModelSpec, Optimizer, Parameters, Training};

const N_REPEATS: usize = 5;

fn network(pool: Option<Layer>) -> ModelSpec {
    let mut layers = vec![Layer::Conv2d { out: 16, kernel: 8, stride: 2, padding: 2 }, Layer::Tanh];
    layers.extend(pool.clone());
    layers.extend([Layer::Conv2d { out: 32, kernel: 4, stride: 2, padding: 0 }, Layer::Tanh]);
    layers.extend(pool);
    layers.extend([
        Layer::Flatten,
        Layer::Linear { out: 32 },
        Layer::Tanh,
        Layer::Linear { out: 10 },
    ]);
    ModelSpec { layers }
}

/// Best time of one call, in seconds.
fn best(mut call: impl FnMut()) -> f64 {
    call();
    (0..N_REPEATS)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let max = Layer::MaxPool2d { kernel: 2, stride: Some(1) };
    let avg = Layer::AvgPool2d { kernel: 2, stride: Some(1) };
    let device = Device::flex();
    println!("examples a second on one core");
    println!(
        "{:10} {:>10} {:>10} {:>10} {:>6}",
        "pooling", "microbatch", "ordinary", "clipped", "ratio"
    );
    for (name, pool) in [("max", Some(max)), ("average", Some(avg)), ("none", None)] {
        let spec = network(pool);
        let mut model = Model::new(&spec, &[1, 28, 28], 10, &device).expect("the layers fit");
        let start = model.manifest().initial_parameters(1);
        model.load(&start).expect("the parameters fit");
        for n in [32, 64, 128, 256] {
            let features = (0..n * 784).map(|i| ((i * 37 % 255) as f32) / 127.5 - 1.0).collect();
            let labels = (0..n as u32).map(|i| i % 10).collect();
            let batch = Batch { features, labels };
            let mask = vec![true; n];
            let ordinary = best(|| drop(gradient_sum(&model, &batch, &mask)));
            let clipped = best(|| drop(clipped_gradient_sum(&model, &batch, &mask, 0.1)));
            let rate = |seconds: f64| n as f64 / seconds;
            println!(
                "{name:10} {n:10} {:10.0} {:10.0} {:6.2}",
                rate(ordinary),
                rate(clipped),
                clipped / ordinary
            );
        }
        epoch(name, &spec, &start);
    }
}

/// Ordinary training as a client does it, on all cores.
fn epoch(name: &str, spec: &ModelSpec, start: &Parameters) {
    const N: usize = 8192;
    let contract = Contract { shape: vec![1, 28, 28], n_classes: 10, scale: Scale::Bytes };
    let features = (0..N * 784).map(|i| (i * 37 % 251) as u8).collect();
    let labels = (0..N as u32).map(|i| i % 10).collect();
    let dataset = Dataset::from_bytes(&contract, features, labels).expect("the sizes fit");
    let training = Training {
        optimizer: Optimizer::Sgd { learning_rate: 0.1, momentum: 0.9 },
        batch: 512,
        local_epochs: Some(1),
        local_steps: None,
        microbatch: 64,
        ema_decay: None,
    };
    let task = TrainingTask {
        spec,
        start,
        dataset: &dataset,
        normalise: Normalise { mean: 0.286, std: 0.353 },
        training: &training,
        n_steps: None,
        correction: None,
        device: &Device::flex(),
        n_threads: comity_burn_models::all_cores(),
    };
    let mut trained = None;
    let seconds = best(|| trained = train_plain(&task, [1; 32], &mut |_, _| {}).ok());
    let digest = trained.expect("the task is sound").digest();
    println!("{name:10} epoch, all cores {:10.0}  {}", N as f64 / seconds, digest.short());
}
