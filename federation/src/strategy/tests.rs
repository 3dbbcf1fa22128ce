//! Each strategy against its definition, computed another way.

use proptest::prelude::*;

use super::*;
use crate::plan::tests::SAMPLE;
use crate::{Aggregation, Plan, Strategy};

fn settings(strategy: Strategy) -> Aggregation {
    Aggregation {
        strategy,
        server_learning_rate: 1.0,
        fixed_point_bits: 4,
        country_weight_max: None,
        update_norm_max_l2: None,
        update_encoding: crate::UpdateEncoding::Int32,
    }
}

fn bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A fold of `n` coordinates by `strategy`, with nothing behind them but what it remembers.
fn fold<U: Updates<Error = std::convert::Infallible> + ?Sized>(
    settings: &Aggregation,
    weights: Vec<u64>,
    n: usize,
    updates: &mut U,
) -> Fold {
    let Ok(fold) = Fold::new(ServerStep::new(settings, n, 0), weights, 1.0, updates);
    fold
}

/// The mean change, in grid steps, that `strategy` makes of `updates`.
fn step(strategy: Strategy, updates: &[Vec<i32>], weights: &[u64]) -> Vec<f32> {
    let updates: Vec<Vec<u8>> = updates.iter().map(|update| bytes(update)).collect();
    let mut updates: Vec<&[u8]> = updates.iter().map(Vec::as_slice).collect();
    let updates = &mut updates[..];
    let n = updates[0].len() / 4;
    let mut fold = fold(&settings(strategy), weights.to_vec(), n, updates);
    let base = vec![0.0; n];
    let mut next = Vec::new();
    for range in fold.chunks() {
        let Ok(values) = fold.step(range, &mut &base[..], updates);
        next.extend(values);
    }
    next.iter().map(|value| value * 16.0).collect()
}

#[test]
fn fedavg_is_the_weighted_mean() {
    let updates = [vec![16, 0], vec![64, 32]];
    assert_eq!(step(Strategy::Fedavg, &updates, &[1, 3]), [52.0, 24.0]);
}

#[test]
fn the_server_learning_rate_multiplies_the_mean() {
    let update = bytes(&[16, -32]);
    let updates = &mut [&update[..]][..];
    let settings = Aggregation { server_learning_rate: 0.5, ..settings(Strategy::Fedavg) };
    let mut fold = fold(&settings, vec![7], 2, updates);
    let Ok(next) = fold.step(0..2, &mut &[1.0, 1.0][..], updates);
    assert_eq!(next, [1.5, 0.0]);
}

#[test]
fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
    let updates = [vec![1, i32::MIN], vec![-100, i32::MIN], vec![5, 0], vec![1_000, 7]];
    let half = (f64::from(i32::MIN) / 2.0) as f32;
    assert_eq!(step(Strategy::Median, &updates, &[1; 4]), [3.0, half]);
    assert_eq!(step(Strategy::Median, &updates[..3], &[1; 3])[0], 1.0);
    assert_eq!(step(Strategy::Median, &updates[..1], &[1])[0], 1.0);
}

#[test]
fn the_trimmed_mean_leaves_out_the_extremes() {
    let updates = [vec![9], vec![i32::MAX], vec![3], vec![i32::MIN], vec![0]];
    assert_eq!(step(Strategy::TrimmedMean { trim: 1 }, &updates, &[1; 5]), [4.0]);
    assert_eq!(step(Strategy::TrimmedMean { trim: 2 }, &updates, &[1; 5]), [3.0]);
}

// BAD_INPUTS 57
#[test]
fn robust_strategies_withstand_a_scaled_and_sign_flipped_update_and_fedavg_does_not() {
    let honest = [vec![10, -10], vec![11, -9], vec![9, -11], vec![10, -11]];
    let mut updates = honest.to_vec();
    updates.insert(2, vec![-100_000, 100_000]);
    let weights = [1; 5];
    for strategy in [
        Strategy::Median,
        Strategy::TrimmedMean { trim: 1 },
        Strategy::Krum { byzantine: 1 },
        Strategy::MultiKrum { byzantine: 1, keep: 2 },
    ] {
        let next = step(strategy, &updates, &weights);
        assert!((9.0..=11.0).contains(&next[0]), "{strategy:?}: {next:?}");
        assert!((-11.0..=-9.0).contains(&next[1]), "{strategy:?}: {next:?}");
    }
    // A cap of one unit, which is 16 grid steps: the attack moves the mean by no more than a fifth.
    let next = step(Strategy::NormCappedMean { norm_max_l2: 1.0 }, &updates, &weights);
    assert!((5.0..=11.0).contains(&next[0]), "{next:?}");
    assert!(step(Strategy::Fedavg, &updates, &weights)[0] < -10_000.0);
}

#[test]
fn krum_takes_the_smaller_client_id_of_equal_scores() {
    // Two pairs, each of which is one step apart: all four have the same score.
    let updates = [vec![50], vec![51], vec![-51], vec![-50], vec![1_000]];
    let krum = Strategy::Krum { byzantine: 1 };
    let scores_equal = [vec![0], vec![0], vec![0], vec![0], vec![0]];
    assert_eq!(step(krum, &scores_equal, &[1; 5]), [0.0]);
    // n - f - 2 = 2 nearest: 51 and -50 have 50 and 51 beside them; the first index wins a tie.
    assert_eq!(step(krum, &updates, &[1; 5]), [50.0]);
}

#[test]
fn a_capped_norm_never_passes_the_cap() {
    let strategy = Strategy::NormCappedMean { norm_max_l2: 2.0 };
    for update in [vec![i32::MAX, i32::MIN, 1], vec![33, 0, 0], vec![24, 24, -24]] {
        let next = step(strategy, &[update], &[1]);
        let norm = next.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!((30.0..=32.0).contains(&norm), "{norm}");
    }
    assert_eq!(step(strategy, &[vec![32, 0, 0]], &[1]), [32.0, 0.0, 0.0]);
}

/// The round's model after each of `rounds`, whose updates are one-coordinate changes in units of the model,
/// by the strategy of a plan; all clients weigh the same and contribute.
fn rounds(strategy: &str, rounds: &[[f64; 3]]) -> Vec<Vec<f32>> {
    let text = SAMPLE
        .replace("\"declared\"", "\"uniform\"")
        .replace("\"fedavg\"", strategy)
        .replace("local_epochs = 1", "local_steps = 5")
        .replace("server_learning_rate = 1.0", "server_learning_rate = 0.5");
    let step = Plan::from_toml(&text).unwrap().server_step().unwrap();
    let step = ServerStep { n_shared: 1, n_kept: 1, ..step };
    let grid = f64::from(1 << 22);
    let mut model = vec![0.0; step.n_values()];
    (model[0], model[1]) = (1.0, 7.0);
    if let Strategy::Fedadagrad { tau, .. }
    | Strategy::Fedadam { tau, .. }
    | Strategy::Fedyogi { tau, .. } = step.strategy
    {
        model[3] = (tau * tau) as f32;
    }
    let mut after = Vec::new();
    for changes in rounds {
        let words: Vec<Vec<u8>> = changes.iter().map(|c| bytes(&[(c * grid) as i32])).collect();
        let mut updates: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let Ok(mut fold) = Fold::new(step.clone(), vec![1; 3], 1.0, &mut updates[..]);
        let mut next = Vec::new();
        for range in fold.chunks() {
            let Ok(values) = fold.step(range, &mut &model[..], &mut updates[..]);
            next.extend(values);
        }
        // A mean that was made elsewhere goes the same way.
        let mean = changes.iter().sum::<f64>() / 3.0;
        let followed = step.follow(&Parameters::new(model.clone()), &[mean as f32]);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        assert!(followed.values().iter().zip(&next).all(near), "{followed:?} {next:?}");
        model.clone_from(&next);
        after.push(next);
    }
    after
}

fn assert_near(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
            "{found} {expected}"
        );
    }
}

#[test]
fn momentum_at_the_server_remembers_the_last_step() {
    // The means are 0.25 and -0.5; m = 0.25, then 0.9 * 0.25 - 0.5 = -0.275.
    let after = rounds("{ fedavgm = { momentum = 0.9 } }", &[[0.5, 0.0, 0.25], [-0.5; 3]]);
    assert_near(&after[0], &[1.0 + 0.5 * 0.25, 7.0, 0.25]);
    assert_near(&after[1], &[1.125 - 0.5 * 0.275, 7.0, -0.275]);
    let default = rounds("{ fedavgm = {} }", &[[0.5, 0.0, 0.25], [-0.5; 3]]);
    assert_eq!(after, default);
}

/// Algorithm 2 of Reddi et al. by hand, with means 0.25 and -0.5, tau = 0.1 and so v = 0.01 at the start.
#[test]
fn the_adaptive_steps_are_those_of_the_paper() {
    let changes = [[0.5, 0.0, 0.25], [-0.5; 3]];
    let x = |before: f64, m: f64, v: f64| before + 0.5 * m / (v.sqrt() + 0.1);
    let after = rounds("{ fedadagrad = { tau = 0.1 } }", &changes);
    let (v1, v2) = (0.01 + 0.0625, 0.01 + 0.0625 + 0.25);
    let x1 = x(1.0, 0.25, v1);
    assert_near(&after[0], &[x1, 7.0, 0.25, v1]);
    assert_near(&after[1], &[x(x1, -0.5, v2), 7.0, -0.5, v2]);

    let after = rounds("{ fedadam = { beta1 = 0.8, beta2 = 0.6, tau = 0.1 } }", &changes);
    let (m1, v1) = (0.2 * 0.25, 0.6 * 0.01 + 0.4 * 0.0625);
    let (m2, v2) = (0.8 * m1 + 0.2 * -0.5, 0.6 * v1 + 0.4 * 0.25);
    let x1 = x(1.0, m1, v1);
    assert_near(&after[0], &[x1, 7.0, m1, v1]);
    assert_near(&after[1], &[x(x1, m2, v2), 7.0, m2, v2]);

    let after = rounds("{ fedyogi = { beta1 = 0.8, beta2 = 0.6, tau = 0.1 } }", &changes);
    // v rises by 0.4 of the square while it is below it.
    let (v1, v2) = (0.01 + 0.4 * 0.0625, 0.01 + 0.4 * 0.0625 + 0.4 * 0.25);
    let x1 = x(1.0, m1, v1);
    assert_near(&after[0], &[x1, 7.0, m1, v1]);
    assert_near(&after[1], &[x(x1, m2, v2), 7.0, m2, v2]);
    // ... and falls by as much while it is above: Adam's would fall by 0.4 of itself.
    let falling = rounds("{ fedyogi = { beta1 = 0.8, beta2 = 0.6, tau = 0.1 } }", &[[0.0625; 3]]);
    assert_near(&falling[0][3..], &[0.01 - 0.4 * 0.0625 * 0.0625]);
}

#[test]
fn the_control_is_the_mean_of_what_clients_keep() {
    // K eta = 5 * 0.1.
    let changes = [[0.5, -0.25, 0.125], [0.25, 0.25, -0.5], [-0.125, 0.0, 0.5]];
    let after = rounds("\"scaffold\"", &changes);
    let (mut c, mut kept) = (0.0, [0.0; 3]);
    let mut x = 1.0;
    for (round, changes) in after.iter().zip(changes) {
        for (kept, change) in kept.iter_mut().zip(changes) {
            *kept += -c - change / 0.5;
        }
        c = kept.iter().sum::<f64>() / 3.0;
        x += 0.5 * changes.iter().sum::<f64>() / 3.0;
        assert_near(round, &[x, 7.0, c]);
    }
}

#[test]
fn fednova_counts_by_step() {
    let text = SAMPLE.replace("\"fedavg\"", "\"NOVA\"").replace("\"NOVA\"", "{ fednova = {} }");
    let plan = |text: &str| Plan::from_toml(text).unwrap();
    // Weights p = 1/2, 1/4, 1/4 and steps 100, 50, 50: tau_eff = 75.
    let (weights, gain) = fednova::normalised(&plan(&text), &[(1000, 100), (500, 50), (500, 50)]);
    let all: u64 = weights.iter().sum();
    let factors: Vec<f64> =
        weights.iter().map(|weight| gain * *weight as f64 / all as f64).collect();
    for (factor, expected) in factors.iter().zip([0.5 * 0.75, 0.25 * 1.5, 0.25 * 1.5]) {
        assert!((factor - expected).abs() < 1e-7, "{factors:?}");
    }
    // Alike clients are averaged.
    let (weights, gain) = fednova::normalised(&plan(&text), &[(3, 7), (3, 7)]);
    assert_eq!(weights[0], weights[1]);
    assert!((gain - 1.0).abs() < 1e-9, "{gain}");
    // With momentum, steps reach (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho): section 4.1.
    let momentum = text.replace("learning_rate = 0.1", "learning_rate = 0.1, momentum = 0.9");
    let reach = |tau: i32| (f64::from(tau) - 0.9 * (1.0 - 0.9_f64.powi(tau)) / 0.1) / 0.1;
    let (weights, _) = fednova::normalised(&plan(&momentum), &[(1, 4), (1, 40)]);
    let ratio = weights[0] as f64 / weights[1] as f64;
    assert!((ratio / (reach(40) / reach(4)) - 1.0).abs() < 1e-6, "{ratio}");
    // With a proximal term, (1 - (1 - eta mu)^tau) / (eta mu): section A.1.
    let proximal = text.replace("fednova = {}", "fednova = { mu = 2.0 }");
    let reach = |tau: i32| (1.0 - 0.8_f64.powi(tau)) / 0.2;
    let (weights, _) = fednova::normalised(&plan(&proximal), &[(1, 4), (1, 40)]);
    let ratio = weights[0] as f64 / weights[1] as f64;
    assert!((ratio / (reach(40) / reach(4)) - 1.0).abs() < 1e-6, "{ratio}");
}

proptest! {
    #[test]
    fn folding_by_chunks_equals_folding_at_once(
        updates in prop::collection::vec(any::<[i32; 5]>(), 5..8),
        cut in 1usize..5,
    ) {
        let strategies = [
            Strategy::Fedavg,
            Strategy::Median,
            Strategy::TrimmedMean { trim: 2 },
            Strategy::Krum { byzantine: 1 },
            Strategy::MultiKrum { byzantine: 1, keep: 2 },
            Strategy::NormCappedMean { norm_max_l2: 1e6 },
            Strategy::Fedavgm { momentum: 0.9 },
            Strategy::Fedadagrad { beta1: 0.0, tau: 1e-3 },
            Strategy::Fedadam { beta1: 0.9, beta2: 0.99, tau: 1e-3 },
            Strategy::Fedyogi { beta1: 0.9, beta2: 0.99, tau: 1e-3 },
            Strategy::Scaffold,
        ];
        let bytes: Vec<Vec<u8>> = updates.iter().map(|update| bytes(update)).collect();
        let mut slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let slices = &mut slices[..];
        for strategy in strategies {
            let mut folded = fold(&settings(strategy), vec![1; updates.len()], 5, slices);
            let base: Vec<f32> = (0..folded.step.n_values()).map(|i| 0.5 + i as f32).collect();
            let ranks = matches!(strategy, Strategy::Median | Strategy::TrimmedMean { .. });
            for section in (0..base.len()).step_by(5) {
                let Ok(whole) = folded.step(section..section + 5, &mut &base[..], slices);
                let middle = section + cut;
                let Ok(mut pieces) = folded.step(section..middle, &mut &base[..], slices);
                let Ok(rest) = folded.step(middle..section + 5, &mut &base[..], slices);
                pieces.extend(rest);
                prop_assert_eq!(&whole, &pieces, "{:?}", strategy);
                // Where no tie is broken, the order does not matter either.
                if strategy.is_weighted() || ranks {
                    let mut turned = slices.to_vec();
                    turned.rotate_left(cut);
                    let turned = &mut turned[..];
                    let mut fold = fold(&settings(strategy), vec![1; updates.len()], 5, turned);
                    let Ok(again) = fold.step(section..section + 5, &mut &base[..], turned);
                    prop_assert_eq!(&whole, &again, "{:?}", strategy);
                }
            }
        }
    }

    #[test]
    fn krum_is_what_its_definition_says(
        updates in prop::collection::vec(any::<[i16; 3]>(), 5..9),
        byzantine in 0u32..2,
    ) {
        let updates: Vec<Vec<i32>> =
            updates.iter().map(|u| u.iter().map(|v| i32::from(*v)).collect()).collect();
        let n = updates.len();
        let distance = |a: &[i32], b: &[i32]| -> i64 {
            a.iter().zip(b).map(|(a, b)| (i64::from(*a) - i64::from(*b)).pow(2)).sum()
        };
        let scores: Vec<i64> = (0..n)
            .map(|one| {
                let mut all: Vec<i64> = (0..n)
                    .filter(|other| *other != one)
                    .map(|other| distance(&updates[one], &updates[other]))
                    .collect();
                all.sort_unstable();
                all.iter().take(n - byzantine as usize - 2).sum()
            })
            .collect();
        let best = (0..n).min_by_key(|index| (scores[*index], *index)).unwrap();
        let next = step(Strategy::Krum { byzantine }, &updates, &vec![1; n]);
        let expected: Vec<f32> = updates[best].iter().map(|v| *v as f32).collect();
        prop_assert_eq!(next, expected);
    }
}
