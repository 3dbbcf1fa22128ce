//! How a table is read: which column is what, and which rows count.
//!
//! Everything here looks at one row alone, with settings that are public, so that what differential
//! privacy promises for the examples it promises for the rows of the file.

use std::path::{Path, PathBuf};

use csv::ByteRecord;
use serde::{Deserialize, Serialize};

use crate::DataError;

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// Position, from 0.
    Index(usize),
    /// Name in the header row.
    Name(String),
}

/// A table with a comma between cells, plain or gzip. Every column that is not named here is a
/// feature, in the order of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The file.
    pub path: PathBuf,
    /// Which column is the label.
    pub label: Column,
    /// The label is 1 where its column is above this number, else 0; absent: the column holds
    /// the plan's classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_above: Option<f64>,
    /// Which column tells whose row it is, in any text; absent: the table does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<Column>,
    /// Whether the first row holds names.
    pub header: bool,
    /// Text of a missing value, such as `"NA"` or `""`; absent: a missing value is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Whether a row with a missing value is left out; otherwise a missing feature becomes the plan's
    /// mean.
    #[serde(default, skip_serializing_if = "is_false")]
    pub leave_out_missing: bool,
    /// Columns that are not used, whatever they hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<Column>,
    /// Columns of categories; each becomes features that are 0 or 1, at its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<Categories>,
}

/// A column of categories, encoded one-hot. The categories are public: were they collected from the
/// rows, a rare one would tell that somebody has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Categories {
    /// The column.
    pub column: Column,
    /// What may stand in it; numbers are compared as numbers, so that `"1"` is `1.0` too.
    pub values: Vec<String>,
    /// Whether the first category has no feature of its own: all of them are then 0.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drop_first: bool,
}

// What `skip_serializing_if` calls it with.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

impl Table {
    /// A table of features and a label, with no other settings.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, label: Column, header: bool) -> Self {
        Self {
            path: path.into(),
            label,
            label_above: None,
            person: None,
            header,
            missing: None,
            leave_out_missing: false,
            drop: Vec::new(),
            categories: Vec::new(),
        }
    }

    /// Whether `cell` stands for a missing value.
    pub(crate) fn is_missing(&self, cell: &[u8]) -> bool {
        self.missing.as_ref().is_some_and(|text| text.trim().as_bytes() == cell)
    }

    /// What each column is, for a table of `n_columns` with these `names`; `group`: a column that
    /// says which client a row is of. Also checks the number of features.
    pub(crate) fn layout(
        &self,
        path: &Path,
        group: Option<&Column>,
        names: Option<&ByteRecord>,
        n_columns: usize,
        n_features: usize,
    ) -> Result<Vec<Role>, DataError> {
        let options = |reason| DataError::Options { path: path.to_owned(), reason };
        if self.leave_out_missing && self.missing.is_none() {
            return Err(options(
                "leave_out_missing needs `missing`, the text of a missing value, such as \"NA\"",
            ));
        }
        if self.label_above.is_some_and(|above| !above.is_finite()) {
            return Err(options("label_above is not a finite number"));
        }
        let mut roles = vec![Role::Feature; n_columns];
        let mut place = |key: &'static str, column: &Column, role: Role| {
            let index = find(column, names, n_columns).ok_or_else(|| DataError::NoColumn {
                path: path.to_owned(),
                role: key,
                column: match column {
                    Column::Index(index) => index.to_string(),
                    Column::Name(name) => format!("{name:?}"),
                },
                n_columns,
            })?;
            match std::mem::replace(&mut roles[index], role) {
                Role::Feature => Ok(()),
                other => Err(DataError::OneColumnTwice {
                    path: path.to_owned(),
                    first: other.key(),
                    second: key,
                }),
            }
        };
        place("label", &self.label, Role::Label)?;
        if let Some(person) = &self.person {
            place("person", person, Role::Person)?;
        }
        if let Some(group) = group {
            place("column", group, Role::Group)?;
        }
        for column in &self.drop {
            place("drop", column, Role::Dropped)?;
        }
        for (index, categories) in self.categories.iter().enumerate() {
            place("categories", &categories.column, Role::Categories(index))?;
            if categories.n_features() == 0 {
                return Err(options(
                    "categories without a feature; list the values of the column, at least two with \
                     drop_first",
                ));
            }
            for (at, value) in categories.values.iter().enumerate() {
                if categories.values[..at].iter().any(|other| is_same(other, value)) {
                    return Err(options("a category is listed twice"));
                }
            }
        }
        let found = roles
            .iter()
            .map(|role| match role {
                Role::Feature => 1,
                Role::Categories(index) => self.categories[*index].n_features(),
                Role::Label | Role::Person | Role::Group | Role::Dropped => 0,
            })
            .sum();
        if found != n_features {
            return Err(DataError::Columns { path: path.to_owned(), found, expected: n_features });
        }
        Ok(roles)
    }
}

impl Categories {
    /// How many features the column becomes.
    pub(crate) fn n_features(&self) -> usize {
        self.values.len().saturating_sub(usize::from(self.drop_first))
    }

    /// Which of the values `cell` is.
    pub(crate) fn find(&self, cell: &str) -> Option<usize> {
        self.values.iter().position(|value| is_same(value, cell))
    }
}

/// Whether two texts are the same, or the same number.
fn is_same(a: &str, b: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    a == b || number(a).is_some_and(|a| number(b) == Some(a))
}

/// What a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Feature,
    Label,
    Person,
    /// It says which client a row is of.
    Group,
    Dropped,
    /// Of this index in [`Table::categories`].
    Categories(usize),
}

impl Role {
    /// The key of the configuration that gives it.
    fn key(self) -> &'static str {
        match self {
            Self::Feature => "feature",
            Self::Label => "label",
            Self::Person => "person",
            Self::Group => "column",
            Self::Dropped => "drop",
            Self::Categories(_) => "categories",
        }
    }
}

fn find(column: &Column, names: Option<&ByteRecord>, n_columns: usize) -> Option<usize> {
    match column {
        Column::Index(index) => Some(*index).filter(|index| *index < n_columns),
        Column::Name(name) => names?.iter().position(|n| n == name.as_bytes()),
    }
}
