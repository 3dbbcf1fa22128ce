//! Models as files, good and bad.

use std::collections::BTreeMap;

use comity_burn_models::{Device, Model, SafetensorsError, read_safetensors, write_safetensors};
use comity_federation::{Layer, Manifest, ModelSpec, Parameters};
use safetensors::tensor::{Dtype, TensorView};

fn spec() -> ModelSpec {
    ModelSpec {
        layers: vec![
            Layer::Conv2d { out: 2, kernel: 2, stride: 1, padding: 0 },
            Layer::Flatten,
            Layer::Linear { out: 3 },
        ],
    }
}

fn manifest() -> Manifest {
    spec().manifest(&[1, 3, 3], 3).unwrap()
}

#[test]
fn parameters_survive_a_file_and_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let parameters = manifest().initial_parameters(1);
    let metadata = BTreeMap::from([("round".to_owned(), "3".to_owned())]);
    write_safetensors(&path, &manifest(), &parameters, &metadata).unwrap();
    let read = read_safetensors(&path, &manifest()).unwrap();
    assert_eq!(read.digest(), parameters.digest());

    let mut model = Model::new(&spec(), &[1, 3, 3], 3, &Device::flex()).unwrap();
    model.load(&read).unwrap();
    assert_eq!(model.parameters().digest(), parameters.digest());
    assert!(model.load(&Parameters::new(vec![0.0; 4])).is_err());
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "a partial file was left");
}

#[test]
fn files_of_other_models_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let zeros = vec![0; 4096];
    let good: Vec<(String, Dtype, Vec<usize>)> = manifest()
        .tensors
        .iter()
        .map(|tensor| (tensor.name.clone(), Dtype::F32, tensor.shape.clone()))
        .collect();
    let write = |tensors: &[(String, Dtype, Vec<usize>)]| {
        let views = tensors.iter().map(|(name, dtype, shape)| {
            let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (name.clone(), TensorView::new(*dtype, shape.clone(), &zeros[..n_bytes]).unwrap())
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        read_safetensors(&path, &manifest())
    };
    assert!(write(&good).is_ok());

    let error = write(&good[1..]).unwrap_err();
    assert!(matches!(&error, SafetensorsError::Missing { name, .. } if name == "layers.0.weight"));
    let mut bad = good.clone();
    bad.push(("layers.9.bias".to_owned(), Dtype::F32, vec![1]));
    assert!(matches!(write(&bad), Err(SafetensorsError::Extra { .. })));
    let mut bad = good.clone();
    bad[0].1 = Dtype::F16;
    assert!(matches!(write(&bad), Err(SafetensorsError::Dtype { .. })));
    let mut bad = good.clone();
    bad[0].2 = vec![2, 1, 4, 1];
    assert!(matches!(write(&bad), Err(SafetensorsError::Shape { .. })));

    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 4, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = read_safetensors(&path, &manifest()).unwrap_err();
        assert!(matches!(error, SafetensorsError::Format { .. }), "{cut}: {error}");
    }
    std::fs::write(&path, vec![0; 2 << 20]).unwrap();
    let error = read_safetensors(&path, &manifest()).unwrap_err();
    assert!(matches!(error, SafetensorsError::TooLarge { .. }), "{error}");
    let error = read_safetensors(&dir.path().join("absent"), &manifest()).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

#[test]
fn parameters_of_another_model_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let error =
        write_safetensors(&path, &manifest(), &Parameters::new(vec![0.0]), &BTreeMap::new());
    assert!(matches!(error, Err(SafetensorsError::Parameters { got: 1, .. })));
    assert!(!path.exists());
}
