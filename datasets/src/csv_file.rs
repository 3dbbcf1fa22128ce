//! CSV tables: one example a row, one column the label, perhaps one the person's id, all others
//! features.

use std::collections::HashMap;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder, Trim};
use serde::{Deserialize, Serialize};

use crate::source::{Input, failed_read};
use crate::{Contract, DataError, Dataset, Scale};

/// Most bytes of one table when unpacked: 16 GiB.
const FILE_BYTES_MAX: u64 = 1 << 34;

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// Position, from 0.
    Index(usize),
    /// Name in the header row.
    Name(String),
}

/// Features as they are collected, in the plan's scale.
enum Cells {
    Bytes(Vec<u8>),
    Reals(Vec<f32>),
}

/// The columns that are not features.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// The class.
    pub(crate) label: &'a Column,
    /// Whose row it is.
    pub(crate) person: Option<&'a Column>,
}

/// Where those columns are.
#[derive(Clone, Copy)]
struct Positions {
    label: usize,
    person: Option<usize>,
}

pub(crate) fn read(
    path: &Path,
    columns: Columns<'_>,
    header: bool,
    missing: Option<&str>,
    contract: &Contract,
) -> Result<Dataset, DataError> {
    let n_features = contract.n_features()?;
    let (input, gzip) = Input::open(path)?.into_reader(FILE_BYTES_MAX);
    let mut reader = ReaderBuilder::new()
        .has_headers(header)
        .flexible(true) // so that a ragged row gets our own error
        .trim(Trim::All)
        .from_reader(input);
    let failed = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(source) => failed_read(path, gzip, source),
        // With `ByteRecord` and `flexible` the csv crate has no other errors.
        _ => DataError::Scale { path: path.to_owned(), reason: "not a CSV file; export it again" },
    };

    let mut n_columns = None;
    let mut positions = None;
    if header {
        let names = reader.byte_headers().map_err(failed)?.clone();
        if names.is_empty() {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        n_columns = Some(names.len());
        positions = Some(columns.find(path, Some(&names), names.len(), n_features)?);
    }

    let mut cells = match contract.scale {
        Scale::Bytes => Cells::Bytes(Vec::new()),
        Scale::Real => Cells::Reals(Vec::new()),
    };
    let mut labels = Vec::new();
    let mut persons = Vec::new();
    let mut numbers = HashMap::<Box<[u8]>, u32>::new();
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(failed)? {
        let line = record.position().map_or(0, csv::Position::line);
        let expected = *n_columns.get_or_insert(record.len());
        if record.len() != expected {
            return Err(DataError::Ragged {
                path: path.to_owned(),
                line,
                found: record.len(),
                expected,
            });
        }
        let Positions { label, person } = match positions {
            Some(positions) => positions,
            None => *positions.insert(columns.find(path, None, expected, n_features)?),
        };
        for (column, cell) in record.iter().enumerate() {
            if Some(column) == person {
                if cell.is_empty() || is_missing(cell, missing) {
                    let reason = "a row without its person's id; fill it in, or leave the row out";
                    return Err(DataError::Cell { path: path.to_owned(), line, column, reason });
                }
                let next = u32::try_from(numbers.len()).expect("a file of 16 GiB has fewer rows");
                persons.push(*numbers.entry(cell.into()).or_insert(next));
            } else if column == label {
                let label = std::str::from_utf8(cell).ok().and_then(|text| text.parse().ok());
                labels.push(
                    label.filter(|l: &u32| (*l as usize) < contract.n_classes).ok_or_else(
                        || DataError::Label {
                            path: path.to_owned(),
                            row: line,
                            n_classes: contract.n_classes,
                        },
                    )?,
                );
            } else {
                cells.push(cell, missing).map_err(|reason| DataError::Cell {
                    path: path.to_owned(),
                    line,
                    column,
                    reason,
                })?;
            }
        }
    }
    if reader.position().byte() >= FILE_BYTES_MAX {
        return Err(DataError::TooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    if labels.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    let dataset = match cells {
        Cells::Bytes(bytes) => Dataset::from_bytes(contract, bytes, labels),
        Cells::Reals(reals) => Dataset::from_reals(contract, reals, labels),
    }?;
    if columns.person.is_some() { dataset.with_persons(persons) } else { Ok(dataset) }
}

fn is_missing(cell: &[u8], missing: Option<&str>) -> bool {
    missing.is_some_and(|text| text.trim().as_bytes() == cell)
}

impl Columns<'_> {
    /// Where the columns are; also checks the number of the others.
    fn find(
        self,
        path: &Path,
        names: Option<&ByteRecord>,
        n_columns: usize,
        n_features: usize,
    ) -> Result<Positions, DataError> {
        let find = |role, column: &Column| {
            let (index, asked) = match column {
                Column::Index(index) => {
                    (Some(*index).filter(|index| *index < n_columns), index.to_string())
                }
                Column::Name(name) => (
                    names.and_then(|names| names.iter().position(|n| n == name.as_bytes())),
                    format!("{name:?}"),
                ),
            };
            index.ok_or_else(|| DataError::NoColumn {
                path: path.to_owned(),
                role,
                column: asked,
                n_columns,
            })
        };
        let label = find("label", self.label)?;
        let person = self.person.map(|column| find("person", column)).transpose()?;
        if person == Some(label) {
            return Err(DataError::OneColumnTwice { path: path.to_owned() });
        }
        let found = n_columns - 1 - usize::from(person.is_some());
        if found != n_features {
            return Err(DataError::Columns { path: path.to_owned(), found, expected: n_features });
        }
        Ok(Positions { label, person })
    }
}

impl Cells {
    /// Parses one cell, or says why it cannot; never repeats the cell.
    fn push(&mut self, cell: &[u8], missing: Option<&str>) -> Result<(), &'static str> {
        let is_missing = is_missing(cell, missing);
        if !is_missing && cell.is_empty() {
            return Err("the cell is empty; fill it in, or set `missing = \"\"`");
        }
        let text = std::str::from_utf8(cell).map_err(|_| "the cell is not UTF-8 text")?;
        match self {
            Self::Bytes(_) if is_missing => {
                Err("a missing value among bytes; fill it in, or ask for scale = \"real\"")
            }
            Self::Bytes(bytes) => {
                bytes.push(text.parse().map_err(
                    |_| "not a whole number from 0 to 255; the plan's scale is \"bytes\"",
                )?);
                Ok(())
            }
            Self::Reals(reals) if is_missing => {
                reals.push(f32::NAN);
                Ok(())
            }
            Self::Reals(reals) => match text.parse::<f32>() {
                Ok(x) if x.is_finite() => {
                    reals.push(x);
                    Ok(())
                }
                Ok(_) => Err("not a finite number; set `missing` to the text of missing values"),
                Err(_) => {
                    Err("not a number; use a point for decimals, encode categories as numbers, \
                     or set `missing` to the text of missing values")
                }
            },
        }
    }
}
