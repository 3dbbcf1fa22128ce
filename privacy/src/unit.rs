//! Whom the promise protects, and what counts as a neighbouring data set.

use serde::{Deserialize, Serialize};

/// The privacy unit: what may be added to or removed from the data without being noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PrivacyUnit {
    /// One row of the institution's data. A person with several rows is protected less.
    Record,
}

/// How two neighbouring data sets differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Relation {
    /// One holds a privacy unit that the other lacks. Replacing a unit by another is two such steps
    /// and can cost about twice the ε.
    AddOrRemoveOne,
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
        assert!(serde_json::from_str::<PrivacyUnit>(r#""institution""#).is_err());
    }
}
