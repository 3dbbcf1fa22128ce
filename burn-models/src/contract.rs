//! The plan's word on the data, as `datasets` understands it: the two crates do not know each
//! other, this one knows both.

use comity_datasets::{Contract, Normalise, Source};
use comity_federation::DataContract;

/// What the files of `source` must look like for a plan that says `data`.
#[must_use]
pub fn data_contract(data: &DataContract, source: &Source) -> Contract {
    Contract { shape: data.shape.clone(), n_classes: data.classes, scale: source.usual_scale() }
}

/// The plan's public normalisation constants.
#[must_use]
pub fn normalisation(data: &DataContract) -> Normalise {
    Normalise { mean: data.normalise.mean as f32, std: data.normalise.std as f32 }
}
