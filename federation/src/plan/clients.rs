//! The clients of a plan: a list of names or, for a simulated federation of many, how many there are
//! of one kind.  Either way the plan holds a list, and its digest is that of the list.

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::cohort::{N_CLIENTS_MAX, NamedClient};
use crate::Country;

/// Many clients that are alike.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Many {
    /// How many.
    n: usize,
    /// Their countries, in turn.
    countries: Vec<Country>,
    /// Declared records of each.
    records: u64,
    /// Declared persons of each.
    #[serde(default)]
    persons: Option<u64>,
}

/// A list of [`NamedClient`]s, or `{ n = 1000, countries = ["KR", "JP"], records = 60 }`, which names
/// `KR/site-00001`, `JP/site-00002` and so on.
pub(super) fn named_or_many<'de, D>(deserializer: D) -> Result<Vec<NamedClient>, D::Error>
where
    D: Deserializer<'de>,
{
    struct NamedOrMany;

    impl<'de> Visitor<'de> for NamedOrMany {
        type Value = Vec<NamedClient>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of clients, or { n, countries, records }")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            let many = Many::deserialize(MapAccessDeserializer::new(map))?;
            if !(1..=N_CLIENTS_MAX).contains(&many.n) || many.countries.is_empty() {
                return Err(A::Error::custom(format!(
                    "cohort.clients: use n from 1 to {N_CLIENTS_MAX}, and at least one country"
                )));
            }
            (1..=many.n)
                .map(|i| {
                    let country = &many.countries[(i - 1) % many.countries.len()];
                    let id = format!("{country}/site-{i:05}");
                    let id = id.parse().map_err(A::Error::custom)?;
                    Ok(NamedClient { id, records: many.records, persons: many.persons })
                })
                .collect()
        }
    }

    deserializer.deserialize_any(NamedOrMany)
}
