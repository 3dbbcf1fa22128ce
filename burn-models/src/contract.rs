//! The plan's word on the data, as `datasets` understands it: the two crates do not know each
//! other, this one knows both.

use std::borrow::Cow;

use comity_datasets::{Contract, Dataset, Normalise, Source};
use comity_federation::{DataContract, Plan};
use comity_privacy::PrivacyUnit;

use crate::TrainError;

/// What the files of `source` must look like for a plan that says `data`.
#[must_use]
pub fn data_contract(data: &DataContract, source: &Source) -> Contract {
    Contract { shape: data.shape.clone(), n_classes: data.classes, scale: source.usual_scale() }
}

/// Whether `dataset` can tell the plan's privacy units apart.
///
/// # Errors
/// [`TrainError::NoPersons`] if the plan protects persons and the data do not name them.
pub fn check_units(plan: &Plan, dataset: &Dataset) -> Result<(), TrainError> {
    plan_units(plan, dataset).map(|_| ())
}

/// The rows that the plan may use: all of them, or as many of each person as the unit allows.
pub(crate) fn plan_units<'a>(
    plan: &Plan,
    dataset: &'a Dataset,
) -> Result<Cow<'a, Dataset>, TrainError> {
    match plan.unit() {
        Some(PrivacyUnit::Person { records_max }) => {
            dataset.capped_by_person(records_max).ok_or(TrainError::NoPersons)
        }
        _ => Ok(Cow::Borrowed(dataset)),
    }
}

/// The plan's public normalisation constants.
#[must_use]
pub fn normalisation(data: &DataContract) -> Normalise {
    Normalise { mean: data.normalise.mean as f32, std: data.normalise.std as f32 }
}
