//! Whom the promise protects, and what counts as a neighbouring data set.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The privacy unit: what may be added to or removed from the data without being noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PrivacyUnit {
    /// One row of the institution's data. A person with several rows is protected less.
    Record,
    /// One person with all rows that bear the person's id. Persons are sampled, and the sum of a
    /// person's gradients is clipped as one.
    Person {
        /// Rows of one person that are used at most; further ones never are.
        records_max: u32,
    },
    /// One institution with everything that it sends. Institutions are sampled, and an institution's
    /// whole change of a round's model is clipped as one (McMahan et al. 2018). Whoever adds the noise
    /// sees the changes without it, so the promise is towards those who see the models only.
    Institution,
}

impl PrivacyUnit {
    /// The most rows that one unit can bring: what a count of rows can change by.
    pub fn records_max(self) -> u32 {
        match self {
            Self::Record => 1,
            Self::Person { records_max } => records_max,
            Self::Institution => u32::MAX,
        }
    }
}

impl fmt::Display for PrivacyUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record => f.write_str("record"),
            Self::Person { records_max } => {
                write!(f, "person, with at most {records_max} records each")
            }
            Self::Institution => f.write_str("institution"),
        }
    }
}

/// How two neighbouring data sets differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Relation {
    /// One holds a privacy unit that the other lacks. Replacing a unit by another is two such steps
    /// and can cost about twice the ε.
    AddOrRemoveOne,
    /// They differ in one privacy unit, which is another in each.
    ReplaceOne,
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddOrRemoveOne => f.write_str("add or remove one"),
            Self::ReplaceOne => f.write_str("replace one"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_are_stable() {
        assert_eq!(serde_json::to_string(&PrivacyUnit::Record).unwrap(), r#""record""#);
        assert_eq!(
            serde_json::to_string(&Relation::AddOrRemoveOne).unwrap(),
            r#""add_or_remove_one""#
        );
        assert_eq!(serde_json::to_string(&Relation::ReplaceOne).unwrap(), r#""replace_one""#);
        let person = PrivacyUnit::Person { records_max: 8 };
        assert_eq!(serde_json::to_string(&person).unwrap(), r#"{"person":{"records_max":8}}"#);
        let institution = serde_json::to_string(&PrivacyUnit::Institution).unwrap();
        assert_eq!(institution, r#""institution""#);
        for unknown in [r#""family""#, r#""person""#, r#"{"person":{"records_max":8,"x":1}}"#] {
            assert!(serde_json::from_str::<PrivacyUnit>(unknown).is_err(), "{unknown}");
        }
    }
}
