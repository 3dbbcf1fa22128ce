//! Whole trainings on small generated data: private, plain, interrupted by nothing but mistakes.

use comity_burn_models::{
    Device, Evaluation, TrainError, TrainingTask, all_cores, evaluate, train_plain, train_private,
};
use comity_datasets::{Contract, Dataset, Normalise, Scale};
use comity_federation::{Layer, ModelSpec, Optimizer, Parameters, Training};
use comity_privacy::{
    Budget, Ledger, Limit, PrivacyPlan, PrivacyRequest, PrivacyUnit, Randomness, Relation,
    ReservationKey, Session,
};

const N: usize = 300;

/// Images of 6 × 6 with a bright row or column; two classes, easily told apart.
fn stripes() -> Dataset {
    let mut features = Vec::new();
    let mut labels = Vec::new();
    for i in 0..N {
        let (class, position) = (i % 2, i / 2 % 6);
        features.extend((0..36).map(|pixel| {
            let on = if class == 0 { pixel / 6 == position } else { pixel % 6 == position };
            if on { 230 } else { (i * 7 + pixel * 13) as u8 % 40 }
        }));
        labels.push(class as u32);
    }
    let contract = Contract { shape: vec![1, 6, 6], n_classes: 2, scale: Scale::Bytes };
    Dataset::from_bytes(&contract, features, labels).unwrap()
}

fn spec() -> ModelSpec {
    ModelSpec {
        layers: vec![
            Layer::Conv2d { out: 6, kernel: 3, stride: 1, padding: 1 },
            Layer::Tanh,
            Layer::MaxPool2d { kernel: 2, stride: None },
            Layer::Flatten,
            Layer::Linear { out: 2 },
        ],
    }
}

fn training(microbatch: u32) -> Training {
    Training {
        optimizer: Optimizer::Adam { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        batch: 50,
        local_epochs: Some(8),
        local_steps: None,
        microbatch,
        ema_decay: None,
    }
}

/// A session with ε = 8 over `n_steps` steps.
fn session(start: &Parameters, n_steps: u32) -> Session {
    let request = PrivacyRequest {
        unit: PrivacyUnit::Record,
        relation: Relation::AddOrRemoveOne,
        budget: Budget::new(8.0, 1e-5).unwrap(),
        units_declared: N as u64,
        batch_expected: 50,
        steps_per_round: n_steps,
        rounds: 1,
        clip_norm_l2: 1.0,
        n_parameters: start.values().len() as u64,
        metrics_rho_per_round: 0.0,
        loss: None,
        analytics: None,
    };
    let plan = PrivacyPlan::calibrate(&request).unwrap();
    let limit = Limit { budget: Some(plan.budget()), exempt_allowed: false };
    let key = ReservationKey { run: "test".to_owned(), round: 1 };
    let randomness = Randomness::from_os().unwrap();
    let reservation =
        Ledger::new(limit).reserve(&mut Vec::new(), key, plan.charge(&randomness)).unwrap();
    plan.session(reservation, randomness).unwrap()
}

fn start() -> Parameters {
    spec().manifest(&[1, 6, 6], 2).unwrap().initial_parameters(3)
}

fn quality(parameters: &Parameters, data: &Dataset) -> Evaluation {
    evaluate(&spec(), parameters, data, NORMALISE, &Device::flex(), 64, all_cores()).unwrap()
}

#[test]
fn a_score_does_not_depend_on_the_number_of_threads() {
    let (data, start) = (stripes(), start());
    // The second is computed by burn.
    let residual = Layer::Residual { layers: vec![Layer::Linear { out: 36 }] };
    let layers = vec![Layer::Flatten, residual, Layer::Linear { out: 2 }];
    for (spec, start) in [
        (spec(), start),
        (ModelSpec { layers: layers.clone() }, {
            ModelSpec { layers }.manifest(&[1, 6, 6], 2).unwrap().initial_parameters(3)
        }),
    ] {
        let on = |n: usize| {
            let n = std::num::NonZero::new(n).unwrap();
            evaluate(&spec, &start, &data, NORMALISE, &Device::flex(), 17, n).unwrap()
        };
        let one = on(1);
        assert_eq!(one.n, N);
        for n in [2, 3, 5, 100] {
            assert_eq!(on(n), one);
        }
    }
}

const NORMALISE: Normalise = Normalise { mean: 0.2, std: 0.3 };

#[test]
fn plain_training_learns_and_repeats_to_the_bit() {
    let (data, start, device) = (stripes(), start(), Device::flex());
    let train = |microbatch, seed| {
        let task = TrainingTask {
            spec: &spec(),
            start: &start,
            dataset: &data,
            normalise: NORMALISE,
            training: &training(microbatch),
            n_steps: None,
            correction: None,
            device: &device,
            n_threads: comity_burn_models::all_cores(),
        };
        let mut last = (0, 0);
        let trained = train_plain(&task, [seed; 32], &mut |step, steps| {
            assert_eq!(step, last.0 + 1);
            last = (step, steps);
        });
        assert_eq!(last, (48, 48));
        trained.unwrap()
    };
    let trained = train(16, 1);
    let before = quality(&start, &data);
    let after = quality(&trained, &data);
    assert!(after.accuracy > 0.95 && after.loss < before.loss, "{before:?} {after:?}");
    assert_eq!(after.n_correct as f64 / after.n as f64, after.accuracy);
    assert_eq!(trained, train(16, 1));
    assert_ne!(trained, train(16, 2));
    // The microbatch is a matter of memory, not of the result.
    let other = train(50, 1);
    let differs = trained.values().iter().zip(other.values()).any(|(a, b)| (a - b).abs() > 1e-3);
    assert!(!differs);
}

#[test]
fn a_number_of_steps_goes_through_shuffled_epochs_and_stops_where_it_says() {
    let (data, start, device) = (stripes(), start(), Device::flex());
    // 300 records in batches of 70: four whole ones and a short one.
    let train = |local_epochs, local_steps| {
        let training = Training { batch: 70, local_epochs, local_steps, ..training(50) };
        let task = TrainingTask {
            spec: &spec(),
            start: &start,
            dataset: &data,
            normalise: NORMALISE,
            training: &training,
            n_steps: None,
            correction: None,
            device: &device,
            n_threads: comity_burn_models::all_cores(),
        };
        let mut n_steps = 0;
        let trained = train_plain(&task, [1; 32], &mut |_, _| n_steps += 1).unwrap();
        (trained, n_steps)
    };
    let (two_epochs, ten_steps) = (train(Some(2), None), train(None, Some(10)));
    assert_eq!((two_epochs.1, ten_steps.1), (10, 10));
    assert_eq!(two_epochs.0, ten_steps.0);
    for n_steps in [1, 5, 12] {
        let trained = train(None, Some(n_steps));
        assert_eq!(trained.1, n_steps);
        assert_ne!(trained.0, two_epochs.0);
    }
}

/// The last weights of a training that still moves differ from their average, and both are good.
#[test]
fn averaged_weights_leave_in_place_of_the_last_ones() {
    let (data, start, device) = (stripes(), start(), Device::flex());
    let train = |ema_decay| {
        let training = Training { ema_decay, ..training(50) };
        let task = TrainingTask {
            spec: &spec(),
            start: &start,
            dataset: &data,
            normalise: NORMALISE,
            training: &training,
            n_steps: None,
            correction: None,
            device: &device,
            n_threads: comity_burn_models::all_cores(),
        };
        train_plain(&task, [1; 32], &mut |_, _| {}).unwrap()
    };
    let (last, average) = (train(None), train(Some(0.9)));
    assert_ne!(last, average);
    assert!(quality(&average, &data).accuracy > 0.95);
    // With hardly any memory the average is the last.
    let differs = |a: &Parameters, b: &Parameters| {
        a.values().iter().zip(b.values()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(differs(&train(Some(1e-9)), &last) < 1e-6);
}

/// The front's features are those of the private and the plain step and of the evaluation alike.
#[test]
fn a_model_behind_a_scattering_front_learns() {
    let (data, device) = (stripes(), Device::flex());
    let spec = ModelSpec {
        layers: vec![
            Layer::Scattering { scales: 1, angles: 4, norm_groups: Some(1) },
            Layer::Flatten,
            Layer::Linear { out: 2 },
        ],
    };
    let start = spec.manifest(&[1, 6, 6], 2).unwrap().initial_parameters(3);
    assert_eq!(start.values().len(), 2 * (5 * 9) + 2);
    let optimizer = Optimizer::Adam { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let training = Training { optimizer, ..training(32) };
    let task = TrainingTask {
        spec: &spec,
        start: &start,
        dataset: &data,
        normalise: NORMALISE,
        training: &training,
        n_steps: None,
        correction: None,
        device: &device,
        n_threads: comity_burn_models::all_cores(),
    };
    let accuracy = |parameters: &Parameters, data: &Dataset| {
        evaluate(&spec, parameters, data, NORMALISE, &device, 64, all_cores()).unwrap().accuracy
    };
    let plain = train_plain(&task, [1; 32], &mut |_, _| {}).unwrap();
    assert!(accuracy(&plain, &data) > 0.95);
    // A copy has no features kept beside it, and gives the same.
    let copy: Vec<usize> = (0..data.len()).collect();
    assert_eq!(accuracy(&plain, &data.subset(&copy)), accuracy(&plain, &data));
    let private = train_private(&task, &mut session(&start, 60), &mut |_, _| {}).unwrap();
    assert!(accuracy(&private, &data) > 0.75);
}

/// The noise is the operating system's; the accuracy was 100 % in each of 60 repetitions, so the
/// false-alarm rate of asking for 75 % is far below one in a thousand.
#[test]
fn private_training_learns() {
    let (data, start, device) = (stripes(), start(), Device::flex());
    let mut session = session(&start, 60);
    let task = TrainingTask {
        spec: &spec(),
        start: &start,
        dataset: &data,
        normalise: NORMALISE,
        training: &training(32),
        n_steps: None,
        correction: None,
        device: &device,
        n_threads: comity_burn_models::all_cores(),
    };
    let mut n_calls = 0;
    let trained = train_private(&task, &mut session, &mut |step, steps| {
        n_calls += 1;
        assert_eq!((step, steps), (n_calls, 60));
    })
    .unwrap();
    assert_eq!((n_calls, session.steps_left()), (60, 0));
    let quality = quality(&trained, &data);
    assert!(quality.accuracy > 0.75, "{quality:?}");
}

#[test]
fn private_training_on_no_rows_is_noise_alone() {
    let (start, device) = (start(), Device::flex());
    let none = stripes().subset(&[]);
    let task = TrainingTask {
        spec: &spec(),
        start: &start,
        dataset: &none,
        normalise: NORMALISE,
        training: &training(32),
        n_steps: None,
        correction: None,
        device: &device,
        n_threads: comity_burn_models::all_cores(),
    };
    let trained = train_private(&task, &mut session(&start, 3), &mut |_, _| {}).unwrap();
    assert_ne!(trained, start);
    let error = train_plain(&task, [0; 32], &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, TrainError::NoData));
    let error = evaluate(&spec(), &start, &none, NORMALISE, &device, 8, all_cores()).unwrap_err();
    assert!(matches!(error, TrainError::NoData));
}

#[test]
fn mistakes_are_refused_before_a_step_is_taken() {
    let (data, start, device) = (stripes(), start(), Device::flex());
    let good = training(32);
    let task = TrainingTask {
        spec: &spec(),
        start: &start,
        dataset: &data,
        normalise: NORMALISE,
        training: &good,
        n_steps: None,
        correction: None,
        device: &device,
        n_threads: comity_burn_models::all_cores(),
    };
    let mut session = session(&start, 3);
    let short = Parameters::new(vec![0.0; 3]);
    let no_batch = Training { batch: 0, ..good.clone() };
    let no_microbatch = Training { microbatch: 0, ..good.clone() };
    let flat = ModelSpec { layers: vec![Layer::Linear { out: 2 }] };
    for bad in [
        TrainingTask { start: &short, ..task },
        TrainingTask { training: &no_batch, ..task },
        TrainingTask { training: &no_microbatch, ..task },
        TrainingTask { spec: &flat, ..task },
    ] {
        assert!(train_private(&bad, &mut session, &mut |_, _| {}).is_err());
        assert!(train_plain(&bad, [0; 32], &mut |_, _| {}).is_err());
    }
    assert_eq!(session.steps_left(), 3);
}

#[test]
fn training_that_runs_away_is_an_error() {
    let (data, start, device) = (stripes(), start(), Device::flex());
    let training = Training {
        optimizer: Optimizer::Sgd { learning_rate: 1e38, momentum: 0.9 },
        ..training(32)
    };
    let task = TrainingTask {
        spec: &spec(),
        start: &start,
        dataset: &data,
        normalise: NORMALISE,
        training: &training,
        n_steps: None,
        correction: None,
        device: &device,
        n_threads: comity_burn_models::all_cores(),
    };
    let error = train_plain(&task, [0; 32], &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite), "{error}");
}
