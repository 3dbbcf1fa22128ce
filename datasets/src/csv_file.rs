//! CSV tables: one example a row, one column the label, all others features.

use std::path::Path;

use csv::{ByteRecord, ReaderBuilder, Trim};
use serde::{Deserialize, Serialize};

use crate::source::{Input, failed_read};
use crate::{Contract, DataError, Dataset, Scale};

/// Most bytes of one table when unpacked: 16 GiB.
const FILE_BYTES_MAX: u64 = 1 << 34;

/// Which column of a table is the label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelColumn {
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

pub(crate) fn read(
    path: &Path,
    label: &LabelColumn,
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
    let mut label_index = None;
    if header {
        let names = reader.byte_headers().map_err(failed)?.clone();
        if names.is_empty() {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        n_columns = Some(names.len());
        label_index = Some(find_label(path, label, Some(&names), names.len(), n_features)?);
    }

    let mut cells = match contract.scale {
        Scale::Bytes => Cells::Bytes(Vec::new()),
        Scale::Real => Cells::Reals(Vec::new()),
    };
    let mut labels = Vec::new();
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
        let label_index = match label_index {
            Some(index) => index,
            None => *label_index.insert(find_label(path, label, None, expected, n_features)?),
        };
        for (column, cell) in record.iter().enumerate() {
            if column == label_index {
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
    match cells {
        Cells::Bytes(bytes) => Dataset::from_bytes(contract, bytes, labels),
        Cells::Reals(reals) => Dataset::from_reals(contract, reals, labels),
    }
}

/// Index of the label column; also checks the number of the others.
fn find_label(
    path: &Path,
    label: &LabelColumn,
    names: Option<&ByteRecord>,
    n_columns: usize,
    n_features: usize,
) -> Result<usize, DataError> {
    let (index, asked) = match label {
        LabelColumn::Index(index) => {
            (Some(*index).filter(|index| *index < n_columns), index.to_string())
        }
        LabelColumn::Name(name) => (
            names.and_then(|names| names.iter().position(|n| n == name.as_bytes())),
            format!("{name:?}"),
        ),
    };
    let index = index.ok_or_else(|| DataError::LabelColumn {
        path: path.to_owned(),
        label: asked,
        n_columns,
    })?;
    if n_columns - 1 != n_features {
        return Err(DataError::Columns {
            path: path.to_owned(),
            found: n_columns - 1,
            expected: n_features,
        });
    }
    Ok(index)
}

impl Cells {
    /// Parses one cell, or says why it cannot; never repeats the cell.
    fn push(&mut self, cell: &[u8], missing: Option<&str>) -> Result<(), &'static str> {
        let is_missing = missing.is_some_and(|text| text.trim().as_bytes() == cell);
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
