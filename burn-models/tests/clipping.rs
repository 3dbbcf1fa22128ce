//! The clipped sum as its users meet it: each example by itself, clipped, and then the sum. A
//! planted defect has to fail this (`tests/mutants`).

use comity_burn_models::{Device, Model, clipped_gradient_sum, gradient_sum};
use comity_datasets::Batch;
use comity_federation::{Layer, ModelSpec};
use comity_privacy::clip_in_place;

const N: usize = 12;
const N_FEATURES: usize = 5;

fn example(index: usize) -> Batch {
    // From small to large, so that some are clipped and some are not.
    let scale = 0.02 * 2.0_f32.powi(index as i32);
    let features = (0..N_FEATURES).map(|i| scale * ((i * 7 + index * 3) % 11) as f32 / 11.0);
    Batch { features: features.collect(), labels: vec![(index % 3) as u32] }
}

#[test]
fn the_clipped_sum_is_the_sum_of_clipped_gradients() {
    let spec =
        ModelSpec { layers: vec![Layer::Linear { out: 7 }, Layer::Relu, Layer::Linear { out: 3 }] };
    let mut model = Model::new(&spec, &[N_FEATURES], 3, &Device::flex()).unwrap();
    let start = spec.manifest(&[N_FEATURES], 3).unwrap().initial_parameters(5);
    model.load(&start).unwrap();
    let clip_norm_l2 = 1.0;

    let (mut expected, mut n_clipped) = (vec![0.0_f64; start.values().len()], 0);
    let mut all = Batch { features: Vec::new(), labels: Vec::new() };
    for one in (0..N).map(example) {
        let mut gradient = gradient_sum(&model, &one, &[true]).unwrap();
        if clip_in_place(&mut gradient, clip_norm_l2).unwrap() > clip_norm_l2 {
            n_clipped += 1;
        }
        expected.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += f64::from(value));
        all.features.extend(one.features);
        all.labels.extend(one.labels);
    }
    assert!(n_clipped > 2 && n_clipped < N, "{n_clipped} of {N} examples were clipped");

    let sum = clipped_gradient_sum(&model, &all, &[true; N], clip_norm_l2).unwrap();
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied());
    let error = norm(&mut expected.iter().zip(&sum).map(|(a, b)| a - f64::from(*b)));
    assert!(error < 1e-5 * size, "off by {error} of {size}");
}
