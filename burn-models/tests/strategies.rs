//! Whole rounds of strategies that change what a client does, on problems small enough to know the answer.

use std::num::NonZero;

use comity_burn_models::{
    Device, FineTuning, LocalResult, LocalRound, Model, RoundError, fine_tune, gradient_sum,
    local_round, normalisation, personal_model,
};
use comity_datasets::{Contract, Dataset, Scale};
use comity_federation::{ClientState, Encoded, Fold, Parameters, Plan, Task, Time, Update};
use comity_privacy::{Charge, Ledger, Limit, Randomness, ReservationKey};

const PLAN: &str = r#"
name = "strategies"
purpose = "Two clients whose data differ."
seed = 3
rounds = 100
[data]
shape = [2]
classes = 2
normalise = { mean = 0.0, std = 1.0 }
[[model.layers]]
type = "linear"
out = 2
[training]
optimizer = { type = "sgd", learning_rate = 0.5 }
batch = 40
LENGTH
microbatch = 40
[privacy]
mode = "none"
[cohort]
min_clients = 2
min_countries = 2
gathering_deadline = "1m"
round_deadline = "1m"
weights = "declared"
clients = [{ id = "KR/a", records = N_A }, { id = "VN/b", records = N_B }]
[aggregation]
strategy = STRATEGY
server_learning_rate = 1.0
fixed_point_bits = 24
"#;

fn text(strategy: &str, length: &str, n_records: [usize; 2]) -> String {
    PLAN.replace("STRATEGY", strategy)
        .replace("LENGTH", length)
        .replace("N_A", &n_records[0].to_string())
        .replace("N_B", &n_records[1].to_string())
}

fn plan(strategy: &str, length: &str, n_records: [usize; 2]) -> Plan {
    Plan::from_toml(&text(strategy, length, n_records)).unwrap()
}

/// `n` points whose label depends on one coordinate for one client and on the other for the other, with every
/// fifth label wrong, so that the best model is finite.
fn shard(client: usize, n: usize) -> Dataset {
    let mut features = Vec::new();
    let mut labels = Vec::new();
    for i in 0..n {
        let x = (i * 37 % 40) as f32 / 20.0 - 1.0;
        let y = (i * 23 % 40) as f32 / 20.0 - 1.0;
        features.extend([x, y]);
        let own = if client == 0 { x } else { 0.4 - y };
        labels.push(u32::from((own > 0.0) != (i % 5 == 0)));
    }
    let contract = Contract { shape: vec![2], n_classes: 2, scale: Scale::Real };
    Dataset::from_reals(&contract, features, labels).unwrap()
}

/// One client's part in `round`, out of `model`.
fn part(
    plan: &Plan,
    round: u32,
    client: usize,
    model: &Parameters,
    data: &Dataset,
    state: Option<&ClientState>,
) -> Result<LocalResult, RoundError> {
    let named = &plan.cohort.clients[client];
    let privacy = plan.privacy_plan(named).unwrap();
    let randomness = privacy.as_ref().map(|_| Randomness::from_os().unwrap());
    let charge = match privacy.as_ref().zip(randomness.as_ref()) {
        Some((privacy, randomness)) => privacy.charge(randomness),
        None => Charge::exempt(plan.digest().0),
    };
    let budget = plan.budget().unwrap();
    let limit = Limit { budget, exempt_allowed: budget.is_none() };
    let key = ReservationKey { run: "test".to_owned(), round };
    let reservation = Ledger::new(limit).reserve(&mut Vec::new(), key, charge).unwrap();
    let task = LocalRound {
        plan,
        plan_digest: plan.digest(),
        round,
        client: &named.id,
        base: model,
        dataset: data,
        device: &Device::flex(),
        n_threads: NonZero::<usize>::MIN,
    };
    local_round(&task, state, privacy.as_ref().zip(randomness), reservation, &mut |_, _| {})
}

/// The bytes that leave.
fn bytes(
    plan: &Plan,
    round: u32,
    client: usize,
    model: &Parameters,
    result: LocalResult,
) -> Vec<u8> {
    let task = Task {
        run: "test-1".parse().unwrap(),
        round,
        plan: plan.digest(),
        model: model.digest(),
        closes: Time(0),
    };
    let id = &plan.cohort.clients[client].id;
    Update::new(&task, plan, id, result.release).delta_bytes().to_vec()
}

/// The model after `rounds` in which everybody contributes, and what the clients keep. `gain` and weights are
/// those of the run: FedNova's come with the effect.
fn federate(
    plan: &Plan,
    shards: &[Dataset],
    rounds: u32,
) -> (Parameters, Vec<Option<ClientState>>) {
    let mut model = plan.manifest().unwrap().initial_parameters(plan.seed);
    let mut states: Vec<Option<ClientState>> = vec![None; shards.len()];
    for round in 1..=rounds {
        let mut updates = Vec::new();
        for (client, data) in shards.iter().enumerate() {
            let state = states[client].as_ref();
            let mut result = part(plan, round, client, &model, data, state).unwrap();
            states[client] = result.state.take();
            updates.push(bytes(plan, round, client, &model, result));
        }
        let slices: Vec<&[u8]> = updates.iter().map(Vec::as_slice).collect();
        let (weights, gain) = weights(plan);
        let step = plan.server_step().unwrap();
        let (encoding, n_coordinates) = (plan.update_encoding(round), step.n_shared());
        let mut encoded = Encoded { updates: &slices, encoding, n_coordinates };
        let Ok(mut fold) = Fold::new(step, weights, gain, &mut encoded);
        let mut next = Vec::new();
        for range in fold.chunks() {
            let Ok(values) = fold.step(range, &mut model.values(), &mut encoded);
            next.extend(values);
        }
        model = Parameters::new(next);
    }
    (model, states)
}

/// Weights and gain as the run of `plan` says them when everybody has contributed.
fn weights(plan: &Plan) -> (Vec<u64>, f64) {
    use comity_federation::{Contribution, Effect, Event, ModelDigest, Run, UpdateDigest};
    let mut run = Run::new("test-1".parse().unwrap(), plan.clone(), ModelDigest([0; 32]), Time(0));
    let mut effects = Vec::new();
    for named in &plan.cohort.clients {
        let event = Event::CheckedIn { client: named.id.clone(), plan: plan.digest() };
        run.step(event, Time(0)).unwrap();
    }
    for (index, named) in (0..).zip(&plan.cohort.clients) {
        let contribution = Contribution {
            round: 1,
            plan: plan.digest(),
            base: ModelDigest([0; 32]),
            update: UpdateDigest([index; 32]),
            n_parameters: plan.server_step().unwrap().n_shared() as u64,
            encoding: plan.update_encoding(1),
            n_correct: None,
            loss_sum: None,
        };
        let event = Event::Submitted { client: named.id.clone(), contribution };
        effects = run.step(event, Time(0)).unwrap();
    }
    let Some(Effect::Aggregate { updates, gain, .. }) = effects.pop() else {
        panic!("{effects:?}")
    };
    (updates.into_iter().map(|(_, weight)| weight).collect(), gain)
}

/// The norm of the gradient of the federation's objective, the mean loss of all records, at `model`.
fn slope(plan: &Plan, shards: &[Dataset], model: &Parameters) -> f64 {
    let mut on_device = Model::new(&plan.model, &plan.data.shape, 2, &Device::flex()).unwrap();
    on_device.load(&plan.model_of(model).unwrap()).unwrap();
    let mut sum = vec![0.0; on_device.manifest().n_trainable()];
    let mut n_records = 0;
    for data in shards {
        let rows: Vec<usize> = (0..data.len()).collect();
        let batch = data.batch(&rows, normalisation(&plan.data));
        let gradient = gradient_sum(&on_device, &batch, &vec![true; rows.len()]).unwrap();
        sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += f64::from(value));
        n_records += rows.len();
    }
    sum.iter().map(|value| (value / n_records as f64).powi(2)).sum::<f64>().sqrt()
}

/// Where clients differ and take many steps, federated averaging ends beside the optimum of their objective;
/// control variates make the optimum its fixed point (Karimireddy et al. 2020, theorem III).
#[test]
fn scaffold_ends_in_the_optimum_and_averaging_beside_it() {
    let shards = [shard(0, 40), shard(1, 40)];
    let fedavg = plan("\"fedavg\"", "local_steps = 40", [40, 40]);
    let scaffold = plan("\"scaffold\"", "local_steps = 40", [40, 40]);
    let (model, _) = federate(&fedavg, &shards, 60);
    let drifted = slope(&fedavg, &shards, &model);
    let (model, states) = federate(&scaffold, &shards, 60);
    let corrected = slope(&scaffold, &shards, &model);
    assert!(drifted > 1e-3 && corrected < drifted / 100.0, "{drifted} and {corrected}");

    // Everybody took part: c is the mean of the c_i, and each is the client's own slope.
    let n = scaffold.server_step().unwrap().n_shared();
    let control = &model.values()[n..];
    let (a, b) = (states[0].as_ref().unwrap().values(), states[1].as_ref().unwrap().values());
    for (c, (a, b)) in control.iter().zip(a.iter().zip(b)) {
        assert!((c - (a + b) / 2.0).abs() < 1e-5, "{c} {a} {b}");
    }
    assert!(a.iter().any(|value| value.abs() > 0.05), "{a:?}");
}

#[test]
fn the_control_stays_the_weighted_mean_whatever_the_encoding() {
    let shards = [shard(0, 40), shard(1, 120)];
    for encoding in ["int32", "int16", "int8"] {
        let text = text("\"scaffold\"", "local_steps = 3", [40, 120]).replace(
            "fixed_point_bits = 24",
            &format!("fixed_point_bits = 24\nupdate_encoding = {encoding:?}"),
        );
        let plan = Plan::from_toml(&text).unwrap();
        let (model, states) = federate(&plan, &shards, 8);
        let control = &model.values()[plan.server_step().unwrap().n_shared()..];
        let (a, b) = (states[0].as_ref().unwrap().values(), states[1].as_ref().unwrap().values());
        for (c, (a, b)) in control.iter().zip(a.iter().zip(b)) {
            assert!((c - (0.25 * a + 0.75 * b)).abs() < 1e-5, "{encoding}: {c} {a} {b}");
        }
    }
}

/// A client adds c - c_i to its gradients: one step goes so much farther.
#[test]
fn a_corrected_step_differs_by_the_correction() {
    let plan = plan("\"scaffold\"", "local_steps = 1", [40, 40]);
    let n = plan.server_step().unwrap().n_shared();
    let start = plan.manifest().unwrap().initial_parameters(plan.seed);
    let mut with_control = start.values().to_vec();
    with_control[n..].iter_mut().enumerate().for_each(|(i, c)| *c = 0.1 * i as f32);
    let own = ClientState::new((0..n).map(|i| 0.5 - 0.05 * i as f32).collect());
    let data = shard(0, 40);
    let plain = part(&plan, 1, 0, &start, &data, None).unwrap();
    let corrected =
        part(&plan, 1, 0, &Parameters::new(with_control.clone()), &data, Some(&own)).unwrap();
    let grid = f64::from(1 << 24);
    for i in 0..n {
        let delta =
            |result: &LocalResult| f64::from(result.release.value().delta.values()[i]) / grid;
        let (c, c_i) = (f64::from(with_control[n + i]), f64::from(own.values()[i]));
        let expected = delta(&plain) - 0.5 * (c - c_i);
        assert!((delta(&corrected) - expected).abs() < 1e-6);
        let kept = f64::from(corrected.state.as_ref().unwrap().values()[i]);
        assert!((kept - (c_i - c - delta(&corrected) / 0.5)).abs() < 1e-6);
    }
    // A state of another plan is refused.
    let short = ClientState::new(vec![0.0; n - 1]);
    let error = part(&plan, 1, 0, &start, &data, Some(&short)).unwrap_err();
    assert!(matches!(error, RoundError::State { expected, .. } if expected == n), "{error}");
    let model_alone = Parameters::new(start.values()[..n].to_vec());
    let error = part(&plan, 1, 0, &model_alone, &data, None).unwrap_err();
    assert!(matches!(error, RoundError::Base { expected, .. } if expected == 2 * n), "{error}");
}

/// Clients of other numbers of steps pull the average to their own optimum, as far as their steps reach; divided
/// by that reach they do not (Wang et al. 2020, theorem 1).
#[test]
fn fednova_ends_in_the_optimum_where_averaging_follows_who_takes_more_steps() {
    let shards = [shard(0, 40), shard(1, 320)];
    let slope_of = |strategy: &str| {
        // Equal weights and unequal numbers of steps: 1 and 8.
        let text = text(strategy, "local_epochs = 1", [40, 320])
            .replace("\"declared\"", "\"uniform\"")
            .replace("learning_rate = 0.5", "learning_rate = 0.02");
        let plan = Plan::from_toml(&text).unwrap();
        let model = federate(&plan, &shards, 400).0;
        // The objective weighs both alike: as many records of each.
        slope(&plan, &[shard(0, 40), shard(1, 40)], &model)
    };
    let (fedavg, fednova) = (slope_of("\"fedavg\""), slope_of("{ fednova = {} }"));
    assert!(fedavg > 0.05 && fednova < fedavg / 10.0, "{fedavg} and {fednova}");
}

/// From the federation's model, some epochs on a client's own records fit them better than it does.
#[test]
fn a_tuned_model_fits_its_client_better_and_begins_with_its_own_layers() {
    let plan = plan("\"fedavg\"", "local_steps = 10", [40, 40]);
    let shards = [shard(0, 40), shard(1, 40)];
    let (model, _) = federate(&plan, &shards, 20);
    let tune = |plan: &Plan, model: &Parameters, state, n_epochs| {
        let task = FineTuning {
            plan,
            plan_digest: plan.digest(),
            model,
            state,
            client: &plan.cohort.clients[0].id,
            dataset: &shards[0],
            n_epochs,
            device: &Device::flex(),
            n_threads: NonZero::<usize>::MIN,
        };
        fine_tune(&task, &mut |_, _| {})
    };
    let tuned = tune(&plan, &model, None, 50).unwrap();
    let own_slope = |model: &Parameters| slope(&plan, &shards[..1], model);
    assert!(own_slope(&tuned) < own_slope(&model) / 3.0);
    assert_eq!(tuned, tune(&plan, &model, None, 50).unwrap());
    assert!(tune(&plan, &model, None, 0).is_err());
    let stranger = ClientState::new(vec![0.0; 3]);
    assert!(tune(&plan, &model, Some(&stranger), 1).is_err());
}

/// Declared steps are taken, whatever a client has.
#[test]
fn fednova_takes_the_steps_that_are_declared() {
    let plan = plan("{ fednova = {} }", "local_epochs = 1", [400, 400]);
    let start = plan.manifest().unwrap().initial_parameters(plan.seed);
    let of = |n| part(&plan, 1, 0, &start, &shard(0, n), None).unwrap().release.value().clone();
    // 40 records are one batch, taken ten times: the same as 400 records that are ten times the same.
    let (few, many) = (of(40), of(400));
    let longest = |output: &comity_federation::RoundOutput| {
        output.delta.values().iter().map(|v| v.abs()).max().unwrap()
    };
    assert!(longest(&few) > longest(&many) / 2, "{} and {}", longest(&few), longest(&many));
}

#[test]
fn a_proximal_term_pulls_every_step_but_the_first_back() {
    let data = shard(0, 40);
    let change = |strategy: &str, n_steps: u32| -> Vec<f64> {
        let plan = plan(strategy, &format!("local_steps = {n_steps}"), [40, 40]);
        let start = plan.manifest().unwrap().initial_parameters(plan.seed);
        let result = part(&plan, 1, 0, &start, &data, None).unwrap();
        result
            .release
            .value()
            .delta
            .values()
            .iter()
            .map(|v| f64::from(*v) / f64::from(1 << 24))
            .collect()
    };
    let prox = "{ fedprox = { mu = 0.3 } }";
    for (plain, pulled) in change("\"fedavg\"", 1).iter().zip(change(prox, 1)) {
        assert!((plain - pulled).abs() < 1e-6, "{plain} {pulled}");
    }
    // The second step's gradient has mu times the way gone before.
    let (one, two) = (change("\"fedavg\"", 1), change("\"fedavg\"", 2));
    for ((first, plain), pulled) in one.iter().zip(&two).zip(change(prox, 2)) {
        assert!((pulled - (plain - 0.5 * 0.3 * first)).abs() < 1e-6, "{pulled}");
    }
}

/// A local head: it is trained, it stays, and the next round begins with it.
#[test]
fn local_layers_stay_with_their_client() {
    for mode in [
        "mode = \"none\"",
        "mode = \"dp_sgd\"\nunit = \"record\"\nepsilon = 100.0\ndelta = 1e-3\nclip_norm_l2 = 1.0",
    ] {
        let one = "[[model.layers]]\ntype = \"linear\"\nout = 2\n";
        let two = "[[model.layers]]\ntype = \"linear\"\nout = 3\n[[model.layers]]\ntype = \"local\"\nlayers = [{ type = \"linear\", out = 2 }]\n";
        let text = text("\"fedavg\"", "local_steps = 5", [40, 40])
            .replace(one, two)
            .replace("mode = \"none\"", mode);
        let plan = Plan::from_toml(&text).unwrap();
        let (n_shared, n_local) = (9, 8);
        let start = plan.manifest().unwrap().initial_parameters(plan.seed);
        let data = shard(0, 40);
        let first = part(&plan, 1, 0, &start, &data, None).unwrap();
        assert_eq!(first.release.value().delta.values().len(), n_shared);
        let state = first.state.unwrap();
        assert_eq!(state.values().len(), n_local);
        assert_ne!(state.values(), &start.values()[n_shared..]);
        let own = personal_model(&plan, &start, Some(&state)).unwrap();
        assert_eq!(own.values()[..n_shared], start.values()[..n_shared]);
        assert_eq!(own.values()[n_shared..], *state.values());
        assert_eq!(*personal_model(&plan, &start, None).unwrap(), start);

        // The round's model keeps the values that they start with, whatever clients make of them.
        let (model, states) = federate(&plan, &[shard(0, 40), shard(1, 40)], 3);
        assert_eq!(model.values()[n_shared..], start.values()[n_shared..]);
        assert_ne!(states[0], states[1]);
        if plan.privacy == comity_federation::PrivacyTerms::None {
            // Another state is another update.
            let anew = part(&plan, 2, 0, &start, &data, None).unwrap();
            let again = part(&plan, 2, 0, &start, &data, Some(&state)).unwrap();
            assert_ne!(anew.release.value().delta, again.release.value().delta);
        }
    }
}
