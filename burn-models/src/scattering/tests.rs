//! The transform against Kymatio 0.3.0 (`Scattering2D(J, shape, L)`, NumPy), run once elsewhere.

use super::*;

/// The image that the reference was computed from, in steps of 1/96.
fn image(height: usize, width: usize) -> Vec<f32> {
    (0..height * width)
        .map(|i| (i % width, i / width))
        .map(|(x, y)| ((x * x * 7 + y * 13 + x * y * 5) % 97) as f32 / 96.0)
        .collect()
}

struct Reference {
    scales: usize,
    angles: usize,
    sides: [usize; 2],
    shape: [usize; 3],
    sum: f64,
    norm: f64,
    /// Channel, row, column, value.
    values: &'static [(usize, usize, usize, f64)],
}

const KYMATIO: [Reference; 3] = [
    Reference {
        scales: 2,
        angles: 8,
        sides: [28, 28],
        shape: [81, 7, 7],
        sum: 78.83234124634315,
        norm: 3.780813287050315,
        values: &[
            (0, 0, 0, 0.34288393),
            (1, 5, 3, 0.05518828),
            (3, 1, 2, 0.08777829),
            (11, 6, 5, 0.04854101),
            (16, 3, 6, 0.01798950),
            (17, 1, 2, 0.00782418),
            (19, 4, 1, 0.00777574),
            (27, 2, 4, 0.00555756),
            (35, 0, 0, 0.00469836),
            (40, 4, 1, 0.00821114),
            (43, 5, 3, 0.00648669),
            (51, 3, 6, 0.00799138),
            (59, 1, 2, 0.00481801),
            (67, 6, 5, 0.00199033),
            (75, 4, 1, 0.00306525),
            (80, 1, 2, 0.01399139),
        ],
    },
    Reference {
        scales: 3,
        angles: 5,
        sides: [37, 26],
        shape: [91, 4, 3],
        sum: 20.32469316957143,
        norm: 1.8700963803769408,
        values: &[
            (0, 0, 0, 0.46753360),
            (1, 1, 0, 0.08210452),
            (3, 3, 0, 0.08558423),
            (12, 0, 0, 0.02007018),
            (15, 3, 0, 0.00798297),
            (16, 0, 0, 0.00753021),
            (21, 1, 0, 0.00790296),
            (30, 2, 0, 0.00833995),
            (39, 3, 0, 0.00780560),
            (45, 1, 0, 0.00966263),
            (57, 1, 0, 0.00542763),
            (75, 3, 0, 0.00359478),
            (90, 2, 0, 0.00344371),
        ],
    },
    Reference {
        scales: 1,
        angles: 4,
        sides: [8, 9],
        shape: [5, 4, 4],
        sum: 12.875354759688577,
        norm: 1.990373307198066,
        values: &[
            (0, 0, 0, 0.22167800),
            (1, 1, 3, 0.08385680),
            (2, 2, 2, 0.11401849),
            (3, 3, 1, 0.10172219),
            (4, 0, 0, 0.06084975),
        ],
    },
];

/// Kymatio writes 3.1415 for π in the filters' scale, once for each order: up to 3e-5 each.
const TOLERANCE: f64 = 1.5e-4;

#[test]
fn features_equal_kymatios() {
    for reference in &KYMATIO {
        let [height, width] = reference.sides;
        let transform =
            Scattering::new(reference.scales, reference.angles, None, &[1, height, width]);
        let got = transform.features(&image(height, width));
        let [n_channels, rows, columns] = reference.shape;
        assert_eq!(got.len(), n_channels * rows * columns);
        let near = |got: f64, expected: f64| (got / expected - 1.0).abs() < TOLERANCE;
        for &(channel, row, column, expected) in reference.values {
            let got = f64::from(got[(channel * rows + row) * columns + column]);
            assert!(near(got, expected), "{channel} {row} {column}: {got} for {expected}");
        }
        let got = || got.iter().map(|value| f64::from(*value));
        let (sum, norm) = (got().sum::<f64>(), got().map(|v| v * v).sum::<f64>().sqrt());
        assert!(near(sum, reference.sum) && near(norm, reference.norm), "{sum}, {norm}");
    }
}

#[test]
fn each_example_and_channel_is_transformed_by_itself() {
    let one = Scattering::new(2, 4, None, &[1, 12, 16]);
    let (first, second) = (image(12, 16), vec![0.5; 12 * 16]);
    let alone = [one.features(&first), one.features(&second)].concat();
    assert_eq!(one.features(&[first.clone(), second.clone()].concat()), alone);
    let two = Scattering::new(2, 4, None, &[2, 12, 16]);
    assert_eq!(two.features(&[first, second].concat()), alone);
}

#[test]
fn an_even_image_has_its_value_as_mean_and_no_waves() {
    let features = Scattering::new(2, 8, None, &[1, 28, 28]).features(&[0.75; 28 * 28]);
    let (means, waves) = features.split_at(49);
    assert!(means.iter().all(|mean| (mean - 0.75).abs() < 1e-3), "{means:?}");
    assert!(waves.iter().all(|wave| wave.abs() < 1e-5));
}

#[test]
fn normalised_groups_have_mean_zero_and_variance_one() {
    let plain = Scattering::new(2, 8, None, &[1, 28, 28]).features(&image(28, 28));
    let normed = Scattering::new(2, 8, Some(27), &[1, 28, 28]).features(&image(28, 28));
    for (plain, normed) in plain.chunks_exact(3 * 49).zip(normed.chunks_exact(3 * 49)) {
        let mean = |f: &dyn Fn(f32) -> f64, values: &[f32]| {
            values.iter().map(|v| f(*v)).sum::<f64>() / values.len() as f64
        };
        let variance = mean(&|v| f64::from(v).powi(2), plain) - mean(&|v| v.into(), plain).powi(2);
        assert!(mean(&|v| v.into(), normed).abs() < 1e-5);
        let after = mean(&|v| f64::from(v).powi(2), normed);
        assert!((after - variance / (variance + 1e-5)).abs() < 1e-3, "{after}");
    }
    let even = Scattering::new(2, 8, Some(81), &[1, 28, 28]).features(&[0.5; 28 * 28]);
    assert!(even.iter().all(|value| value.is_finite()));
}
