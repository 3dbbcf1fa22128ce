//! Each strategy against its definition, computed another way.

use proptest::prelude::*;

use super::*;
use crate::Strategy;

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

/// The mean change, in grid steps, that `strategy` makes of `updates`.
fn step(strategy: Strategy, updates: &[Vec<i32>], weights: &[u64]) -> Vec<f32> {
    let updates: Vec<Vec<u8>> = updates.iter().map(|update| bytes(update)).collect();
    let mut updates: Vec<&[u8]> = updates.iter().map(Vec::as_slice).collect();
    let updates = &mut updates[..];
    let n = updates[0].len() / 4;
    let Ok(mut fold) = Fold::new(&settings(strategy), weights.to_vec(), n, updates);
    let mut next = Vec::new();
    for range in fold.chunks() {
        let Ok(values) = fold.step(range.clone(), &vec![0.0; range.len()], updates);
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
    let Ok(mut fold) = Fold::new(&settings, vec![7], 2, updates);
    let Ok(next) = fold.step(0..2, &[1.0, 1.0], updates);
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
        ];
        let bytes: Vec<Vec<u8>> = updates.iter().map(|update| bytes(update)).collect();
        let mut slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let slices = &mut slices[..];
        for strategy in strategies {
            let Ok(mut fold) = Fold::new(&settings(strategy), vec![1; updates.len()], 5, slices);
            let base = [0.5f32; 5];
            let Ok(whole) = fold.step(0..5, &base, slices);
            let Ok(mut pieces) = fold.step(0..cut, &base[..cut], slices);
            let Ok(rest) = fold.step(cut..5, &base[cut..], slices);
            pieces.extend(rest);
            prop_assert_eq!(&whole, &pieces, "{:?}", strategy);
            // Where no tie is broken, the order does not matter either.
            let ranks = matches!(strategy, Strategy::Median | Strategy::TrimmedMean { .. });
            if strategy.is_weighted() || ranks {
                let mut turned = slices.to_vec();
                turned.rotate_left(cut);
                let turned = &mut turned[..];
                let Ok(mut fold) = Fold::new(&settings(strategy), vec![1; updates.len()], 5, turned);
                let Ok(again) = fold.step(0..5, &base, turned);
                prop_assert_eq!(&whole, &again, "{:?}", strategy);
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
