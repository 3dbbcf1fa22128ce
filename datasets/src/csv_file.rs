//! Reads a [`Table`]: one example a row.

use std::collections::HashMap;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder, Trim};

use crate::source::{Input, failed_read};
use crate::table::Role;
use crate::{Categories, Column, Contract, DataError, Dataset, Groups, Scale, Table};

/// Most bytes of one table when unpacked: 16 GiB.
const FILE_BYTES_MAX: u64 = 1 << 34;

/// Features as they are collected, in the plan's scale.
enum Cells {
    Bytes(Vec<u8>),
    Reals(Vec<f32>),
}

/// Reads `table` from `path`; with `group`, that column is no feature and says which rows belong
/// together.
pub(crate) fn read(
    path: &Path,
    table: &Table,
    group: Option<&Column>,
    contract: &Contract,
) -> Result<(Dataset, Option<Groups>), DataError> {
    let n_features = contract.n_features()?;
    let (input, gzip) = Input::open(path)?.into_reader(FILE_BYTES_MAX);
    let mut reader = ReaderBuilder::new()
        .has_headers(table.header)
        .flexible(true) // so that a ragged row gets our own error
        .trim(Trim::All)
        .from_reader(input);
    let failed = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(source) => failed_read(path, gzip, source),
        // With `ByteRecord` and `flexible` the csv crate has no other errors.
        _ => DataError::Scale { path: path.to_owned(), reason: "not a CSV file; export it again" },
    };

    let mut roles = None;
    if table.header {
        let names = reader.byte_headers().map_err(failed)?.clone();
        if names.is_empty() {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        roles = Some(table.layout(path, group, Some(&names), names.len(), n_features)?);
    }

    let mut rows = Rows::new(contract);
    let mut record = ByteRecord::new();
    let mut n_left_out = 0;
    while reader.read_byte_record(&mut record).map_err(failed)? {
        let line = record.position().map_or(0, csv::Position::line);
        let roles: &[Role] = match &roles {
            Some(roles) => roles,
            None => roles.insert(table.layout(path, group, None, record.len(), n_features)?),
        };
        if record.len() != roles.len() {
            return Err(DataError::Ragged {
                path: path.to_owned(),
                line,
                found: record.len(),
                expected: roles.len(),
            });
        }
        let mut cells = record.iter().zip(roles);
        if table.leave_out_missing
            && cells.any(|(cell, role)| *role != Role::Dropped && table.is_missing(cell))
        {
            n_left_out += 1;
            continue;
        }
        for (column, (cell, role)) in record.iter().zip(roles).enumerate() {
            rows.push(table, *role, cell).map_err(|refusal| match refusal {
                Refusal::Label => DataError::Label {
                    path: path.to_owned(),
                    row: line,
                    n_classes: contract.n_classes,
                },
                Refusal::Cell(reason) => {
                    DataError::Cell { path: path.to_owned(), line, column, reason }
                }
            })?;
        }
    }
    if reader.position().byte() >= FILE_BYTES_MAX {
        return Err(DataError::TooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    match (rows.labels.is_empty(), n_left_out) {
        (true, 0) => Err(DataError::Empty { path: path.to_owned() }),
        (true, _) => Err(DataError::Options {
            path: path.to_owned(),
            reason: "every row has a missing value, so leave_out_missing leaves none; drop the \
                     columns that are seldom filled in",
        }),
        (false, _) => rows.finish(table, group.is_some(), contract),
    }
}

/// Why a cell is not taken.
enum Refusal {
    Label,
    Cell(&'static str),
}

/// The rows read so far.
struct Rows {
    n_classes: usize,
    cells: Cells,
    labels: Vec<u32>,
    persons: Numbers,
    groups: Numbers,
}

/// Texts, numbered in the order of their first rows.
#[derive(Default)]
struct Numbers {
    known: HashMap<Box<[u8]>, u32>,
    of_row: Vec<u32>,
}

impl Numbers {
    fn push(&mut self, cell: &[u8]) {
        let next = u32::try_from(self.known.len()).expect("a file of 16 GiB has fewer rows");
        self.of_row.push(*self.known.entry(cell.into()).or_insert(next));
    }

    fn into_groups(self) -> Groups {
        let mut names = vec![String::new(); self.known.len()];
        for (name, number) in self.known {
            names[number as usize] = String::from_utf8_lossy(&name).into_owned();
        }
        Groups::new(names, self.of_row).sorted()
    }
}

impl Rows {
    fn new(contract: &Contract) -> Self {
        Self {
            n_classes: contract.n_classes,
            cells: match contract.scale {
                Scale::Bytes => Cells::Bytes(Vec::new()),
                Scale::Real => Cells::Reals(Vec::new()),
            },
            labels: Vec::new(),
            persons: Numbers::default(),
            groups: Numbers::default(),
        }
    }

    fn push(&mut self, table: &Table, role: Role, cell: &[u8]) -> Result<(), Refusal> {
        let is_missing = table.is_missing(cell);
        match role {
            Role::Dropped => Ok(()),
            Role::Label => {
                let label = label(table, cell).filter(|l| (*l as usize) < self.n_classes);
                self.labels.push(label.ok_or(Refusal::Label)?);
                Ok(())
            }
            Role::Person if cell.is_empty() || is_missing => Err(Refusal::Cell(
                "a row without its person's id; fill it in, or leave the row out",
            )),
            Role::Group if cell.is_empty() || is_missing => Err(Refusal::Cell(
                "a row that does not say which client it is of; fill it in, or leave the row out",
            )),
            Role::Person => {
                self.persons.push(cell);
                Ok(())
            }
            Role::Group => {
                self.groups.push(cell);
                Ok(())
            }
            Role::Feature => self.cells.push(cell, is_missing).map_err(Refusal::Cell),
            Role::Categories(index) => {
                self.cells.push_one_hot(&table.categories[index], cell, is_missing)
            }
        }
    }

    fn finish(
        self,
        table: &Table,
        grouped: bool,
        contract: &Contract,
    ) -> Result<(Dataset, Option<Groups>), DataError> {
        let dataset = match self.cells {
            Cells::Bytes(bytes) => Dataset::from_bytes(contract, bytes, self.labels),
            Cells::Reals(reals) => Dataset::from_reals(contract, reals, self.labels),
        }?;
        let dataset = match table.person {
            Some(_) => dataset.with_persons(self.persons.of_row)?,
            None => dataset,
        };
        Ok((dataset, grouped.then(|| self.groups.into_groups())))
    }
}

/// The class in `cell`, if it is one.
fn label(table: &Table, cell: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(cell).ok()?;
    match table.label_above {
        None => text.parse().ok(),
        Some(above) => {
            let value: f64 = text.parse().ok()?;
            value.is_finite().then(|| u32::from(value > above))
        }
    }
}

impl Cells {
    /// Parses one cell, or says why it cannot; never repeats the cell.
    fn push(&mut self, cell: &[u8], is_missing: bool) -> Result<(), &'static str> {
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
                Err(_) => Err("not a number; use a point for decimals, name the column under \
                     `categories` or `drop`, or set `missing` to the text of missing values"),
            },
        }
    }

    /// One feature for each category, 1 for that of the cell; all missing where the cell is.
    fn push_one_hot(
        &mut self,
        categories: &Categories,
        cell: &[u8],
        is_missing: bool,
    ) -> Result<(), Refusal> {
        let found = match is_missing {
            true => None,
            false => Some(
                std::str::from_utf8(cell).ok().and_then(|text| categories.find(text)).ok_or(
                    Refusal::Cell(
                        "not one of the categories; list every value of the column under `categories`",
                    ),
                )?,
            ),
        };
        let values = usize::from(categories.drop_first)..categories.values.len();
        match (self, found) {
            (Self::Bytes(_), None) => Err(Refusal::Cell(
                "a missing value among bytes; fill it in, or ask for scale = \"real\"",
            )),
            (Self::Bytes(bytes), Some(found)) => {
                bytes.extend(values.map(|value| if value == found { u8::MAX } else { 0 }));
                Ok(())
            }
            (Self::Reals(reals), found) => {
                let one_hot = |value| found.map_or(f32::NAN, |found| f32::from(value == found));
                reals.extend(values.map(one_hot));
                Ok(())
            }
        }
    }
}
