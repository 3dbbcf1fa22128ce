//! Tables with typed columns, as CSV that grows line by line and as Parquet that is written at once.
//!
//! Parquet's footer comes last and cannot be appended to, so a run writes CSV while it goes on and
//! turns it into Parquet, a row group at a time, when it ends.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;

use super::folder::partial;
use crate::SimulationError;

/// Rows that are in memory at once while Parquet is written.
const ROW_GROUP: usize = 16_384;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Real,
    Text,
}

/// A column's name and kind.
pub(super) type Column = (String, Kind);

/// One value; `None` where there is none.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Integer(Option<i64>),
    Real(Option<f64>),
    Text(Option<String>),
}

impl Cell {
    /// As it stands in CSV; an absent value is an empty field.
    pub(super) fn to_field(&self) -> String {
        match self {
            Self::Integer(value) => value.map(|v| v.to_string()).unwrap_or_default(),
            // The shortest text that reads back to the same bits.
            Self::Real(value) => value.map(|v| format!("{v:?}")).unwrap_or_default(),
            Self::Text(value) => value.clone().unwrap_or_default(),
        }
    }

    /// The other way; `None` if `field` is not of that kind.
    pub(super) fn from_field(kind: Kind, field: &str) -> Option<Self> {
        let is_there = !field.is_empty();
        Some(match kind {
            Kind::Integer if is_there => Self::Integer(Some(field.parse().ok()?)),
            Kind::Real if is_there => Self::Real(Some(field.parse().ok()?)),
            Kind::Text if is_there => Self::Text(Some(field.to_owned())),
            Kind::Integer => Self::Integer(None),
            Kind::Real => Self::Real(None),
            Kind::Text => Self::Text(None),
        })
    }
}

/// `fields` as a line of CSV.
pub(super) fn csv_line<'a>(fields: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
    writer.write_record(fields).expect("memory takes a record");
    writer.into_inner().expect("memory takes a record")
}

/// The rows of the CSV at `path`, which has the names of `columns` as its first line.
///
/// A last line without its end is left out: a program was killed while it wrote.
pub(super) fn read_csv<'a>(
    path: &'a Path,
    columns: &'a [Column],
) -> Result<impl Iterator<Item = Result<Vec<Cell>, SimulationError>> + 'a, SimulationError> {
    let (reader, _) = open_csv(path, columns)?;
    Ok(reader.into_records().map(move |record| {
        let record = record.map_err(|error| SimulationError::no_result(path, error))?;
        cells_of(&record, path, columns)
    }))
}

/// Cuts the CSV at `path` before the first row that `keep` does not want.
///
/// # Errors
/// [`SimulationError::NoResult`] if a row before it cannot be read, [`SimulationError::File`].
pub(super) fn cut_csv(
    path: &Path,
    columns: &[Column],
    mut keep: impl FnMut(Vec<Cell>) -> bool,
) -> Result<(), SimulationError> {
    let (mut reader, mut n_bytes) = open_csv(path, columns)?;
    let mut record = csv::StringRecord::new();
    let damaged = |error: csv::Error| SimulationError::no_result(path, error);
    while reader.read_record(&mut record).map_err(damaged)? {
        if !keep(cells_of(&record, path, columns)?) {
            n_bytes = record.position().expect("it was read from a file").byte();
            break;
        }
    }
    let file = std::fs::OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.set_len(n_bytes)).map_err(SimulationError::file("write", path))
}

/// A reader of the whole lines, and how many bytes they are.
fn open_csv(
    path: &Path,
    columns: &[Column],
) -> Result<(csv::Reader<std::io::Take<File>>, u64), SimulationError> {
    let opened = File::open(path).and_then(|mut file| Ok((whole_lines(&mut file)?, file)));
    let (n_bytes, file) = opened.map_err(SimulationError::file("read", path))?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file.take(n_bytes));
    let header = reader.headers().map_err(|error| SimulationError::no_result(path, error))?;
    if !header.iter().eq(columns.iter().map(|(name, _)| name.as_str())) {
        return Err(SimulationError::no_result(path, "its first line names other columns"));
    }
    Ok((reader, n_bytes))
}

/// Bytes of `file` up to the end of its last whole line; leaves it at its beginning.
fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let block = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    file.rewind()?;
    Ok(end)
}

fn cells_of(
    record: &csv::StringRecord,
    path: &Path,
    columns: &[Column],
) -> Result<Vec<Cell>, SimulationError> {
    let line = record.position().map_or(0, csv::Position::line);
    if record.len() != columns.len() {
        let reason = format!("line {line} has {} fields, not {}", record.len(), columns.len());
        return Err(SimulationError::no_result(path, reason));
    }
    let cells = columns.iter().zip(record).map(|((name, kind), field)| {
        Cell::from_field(*kind, field).ok_or_else(|| {
            SimulationError::no_result(path, format!("line {line}: {name} is {field:?}"))
        })
    });
    cells.collect()
}

/// Writes `rows` as Parquet, compressed with Snappy, which every reader knows.
///
/// # Errors
/// What a row brings, and [`SimulationError::File`]; there is no half-written file then.
pub(super) fn write_parquet(
    path: &Path,
    columns: &[Column],
    rows: impl Iterator<Item = Result<Vec<Cell>, SimulationError>>,
) -> Result<(), SimulationError> {
    let partial = partial(path);
    let written = write_parquet_to(&partial, path, columns, rows).and_then(|()| {
        std::fs::rename(&partial, path).map_err(SimulationError::file("write", path))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

fn write_parquet_to(
    partial: &Path,
    path: &Path,
    columns: &[Column],
    mut rows: impl Iterator<Item = Result<Vec<Cell>, SimulationError>>,
) -> Result<(), SimulationError> {
    let failed = |error: ParquetError| SimulationError::file("write", path)(io_error(error));
    let file = File::create(partial).map_err(SimulationError::file("write", path))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema(columns)), Arc::new(properties))
            .map_err(failed)?;
    loop {
        let group = rows.by_ref().take(ROW_GROUP).collect::<Result<Vec<_>, _>>()?;
        if group.is_empty() {
            break;
        }
        let mut to = writer.next_row_group().map_err(failed)?;
        for (index, (_, kind)) in columns.iter().enumerate() {
            write_column(&mut to, *kind, group.iter().map(|row| &row[index])).map_err(failed)?;
        }
        to.close().map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(())
}

/// The operating system's error, if it was one, so that a full disk is known as such.
fn io_error(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => *error,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    }
}

fn schema(columns: &[Column]) -> Type {
    let fields = columns.iter().map(|(name, kind)| {
        let (physical, logical) = match kind {
            Kind::Integer => (Physical::INT64, None),
            Kind::Real => (Physical::DOUBLE, None),
            Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        };
        let field = Type::primitive_type_builder(name, physical)
            .with_logical_type(logical)
            .with_repetition(Repetition::OPTIONAL)
            .build();
        Arc::new(field.expect("the types are Parquet's own"))
    });
    let schema = Type::group_type_builder("schema").with_fields(fields.collect()).build();
    schema.expect("the types are Parquet's own")
}

fn write_column<'a>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    kind: Kind,
    cells: impl Iterator<Item = &'a Cell>,
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.expect("the schema has as many columns");
    let mut levels = Vec::new();
    match kind {
        Kind::Integer => {
            let mut values = Vec::new();
            for cell in cells {
                let Cell::Integer(value) = cell else { unreachable!("the column holds integers") };
                levels.push(i16::from(value.is_some()));
                values.extend(*value);
            }
            column.typed::<Int64Type>().write_batch(&values, Some(&levels), None)?;
        }
        Kind::Real => {
            let mut values = Vec::new();
            for cell in cells {
                let Cell::Real(value) = cell else { unreachable!("the column holds reals") };
                levels.push(i16::from(value.is_some()));
                values.extend(*value);
            }
            column.typed::<DoubleType>().write_batch(&values, Some(&levels), None)?;
        }
        Kind::Text => {
            let mut values = Vec::new();
            for cell in cells {
                let Cell::Text(value) = cell else { unreachable!("the column holds texts") };
                levels.push(i16::from(value.is_some()));
                values.extend(value.as_deref().map(ByteArray::from));
            }
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)?;
        }
    }
    column.close()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use super::*;

    fn columns() -> Vec<Column> {
        vec![
            ("n".to_owned(), Kind::Integer),
            ("x".to_owned(), Kind::Real),
            ("why".to_owned(), Kind::Text),
        ]
    }

    fn rows(n: usize) -> Vec<Vec<Cell>> {
        (0..n)
            .map(|i| {
                vec![
                    Cell::Integer((i % 5 != 0).then_some(i as i64 - 3)),
                    Cell::Real((i % 3 != 0).then_some(i as f64 / 7.0)),
                    Cell::Text((i % 2 == 0).then(|| format!("a \"{i}\",\nü"))),
                ]
            })
            .collect()
    }

    #[test]
    fn parquet_reads_back_over_several_row_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let rows = rows(ROW_GROUP + 11);
        write_parquet(&path, &columns(), rows.iter().cloned().map(Ok)).unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let mut n_read = 0;
        for (row, expected) in reader.get_row_iter(None).unwrap().zip(&rows) {
            for ((_, field), cell) in row.unwrap().get_column_iter().zip(expected) {
                let same = match (field, cell) {
                    (Field::Long(a), Cell::Integer(Some(b))) => a == b,
                    (Field::Double(a), Cell::Real(Some(b))) => a.to_bits() == b.to_bits(),
                    (Field::Str(a), Cell::Text(Some(b))) => a == b,
                    (Field::Null, Cell::Integer(None) | Cell::Real(None) | Cell::Text(None)) => {
                        true
                    }
                    _ => false,
                };
                assert!(same, "{field:?} for {cell:?}");
            }
            n_read += 1;
        }
        assert_eq!(n_read, rows.len());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file stays");
    }

    #[test]
    fn csv_reads_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        let (columns, rows) = (columns(), rows(50));
        let mut text = csv_line(columns.iter().map(|(name, _)| name.as_str()));
        for row in &rows {
            let fields: Vec<String> = row.iter().map(Cell::to_field).collect();
            text.extend(csv_line(fields.iter().map(String::as_str)));
        }
        std::fs::write(&path, text).unwrap();
        let read: Vec<_> = read_csv(&path, &columns).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(read, rows);
        for odd in [f64::INFINITY, f64::MIN_POSITIVE, 1e300, -0.0] {
            let field = Cell::Real(Some(odd)).to_field();
            assert_eq!(
                Cell::from_field(Kind::Real, &field),
                Some(Cell::Real(Some(odd))),
                "{field}"
            );
        }
        assert_eq!(Cell::from_field(Kind::Integer, "1.5"), None);
    }
}
