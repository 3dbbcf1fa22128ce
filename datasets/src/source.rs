//! Where a client's data are: the part of its configuration that names files.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use crate::{Column, Contract, DataError, Dataset, Groups, Scale, Table, csv_file, idx};

/// First two bytes of a gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Files that hold a client's examples. Relative paths start at the configuration's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// A pair of IDX files (the format of MNIST), plain or gzip.
    Idx {
        /// Unsigned bytes, `[n, height, width]` or `[n, shape…]`.
        images: PathBuf,
        /// Unsigned bytes, `[n]`.
        labels: PathBuf,
    },
    /// One table with a comma between cells.
    Csv(Table),
}

impl Source {
    /// How features are written in files of this kind: bytes in IDX, real numbers in CSV.
    #[must_use]
    pub fn usual_scale(&self) -> Scale {
        match self {
            Self::Idx { .. } => Scale::Bytes,
            Self::Csv(_) => Scale::Real,
        }
    }

    /// Reads and checks everything; relative paths start at `base_dir`.
    ///
    /// # Errors
    /// [`DataError`] for the first thing that does not meet `contract`.
    pub fn load(&self, base_dir: &Path, contract: &Contract) -> Result<Dataset, DataError> {
        match self {
            Self::Idx { images, labels } => {
                idx::read(&base_dir.join(images), &base_dir.join(labels), contract)
            }
            Self::Csv(table) => {
                csv_file::read(&base_dir.join(&table.path), table, None, contract).map(|(d, _)| d)
            }
        }
    }

    /// As [`load`](Self::load); `column` is no feature, but says which rows belong together.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`DataError::Scale`] if the files have no columns.
    pub fn load_grouped(
        &self,
        base_dir: &Path,
        contract: &Contract,
        column: &Column,
    ) -> Result<(Dataset, Groups), DataError> {
        match self {
            Self::Idx { images, .. } => Err(DataError::Scale {
                path: base_dir.join(images),
                reason: "IDX files have no columns to split by; use a csv table, or another kind of \
                         partition",
            }),
            Self::Csv(table) => {
                let path = base_dir.join(&table.path);
                let (data, groups) = csv_file::read(&path, table, Some(column), contract)?;
                Ok((data, groups.expect("they were asked for")))
            }
        }
    }
}

/// A file opened for reading, unpacked if its first bytes say that it is gzip.
pub(crate) struct Input {
    path: PathBuf,
    gzip: bool,
    reader: Box<dyn Read>,
}

impl Input {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        let mut start = Vec::with_capacity(GZIP_MAGIC.len());
        (&mut file).take(GZIP_MAGIC.len() as u64).read_to_end(&mut start).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let gzip = start == GZIP_MAGIC;
        let file = BufReader::with_capacity(1 << 16, file);
        let reader: Box<dyn Read> =
            if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Ok(Self { path: path.to_owned(), gzip, reader })
    }

    /// Reads at most `n_bytes`; fewer if the file ends before. Memory grows with what the file
    /// holds, not with `n_bytes`, which may come from a header.
    pub(crate) fn read_up_to(&mut self, n_bytes: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        match (&mut self.reader).take(n_bytes).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(self.error(source)),
        }
    }

    /// The error for a failed read of this file.
    pub(crate) fn error(&self, source: std::io::Error) -> DataError {
        failed_read(&self.path, self.gzip, source)
    }

    /// The reader, at most `n_bytes` of it, and whether it unpacks gzip.
    pub(crate) fn into_reader(self, n_bytes: u64) -> (impl Read, bool) {
        (self.reader.take(n_bytes), self.gzip)
    }
}

/// Tells a damaged archive from a failing disk.
pub(crate) fn failed_read(path: &Path, gzip: bool, source: std::io::Error) -> DataError {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    let path = path.to_owned();
    if gzip && matches!(source.kind(), InvalidData | InvalidInput | UnexpectedEof) {
        DataError::Gzip { path }
    } else {
        DataError::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_from_configuration() {
        let source: Source =
            toml::from_str("kind = \"csv\"\npath = \"a.csv\"\nlabel = \"class\"\nheader = true\n")
                .unwrap();
        let table = Table::new("a.csv", Column::Name("class".into()), true);
        assert_eq!(source, Source::Csv(table));
        let refused = "kind = \"csv\"\npath = \"a.csv\"\nlabel = 1\nheader = true\nlable = 2\n";
        assert!(toml::from_str::<Source>(refused).is_err());
        let idx = "kind = \"idx\"\nimages = \"i.gz\"\nlabels = \"l.gz\"\n";
        assert!(toml::from_str::<Source>(idx).is_ok());
        assert!(toml::from_str::<Source>(&format!("{idx}typo = 1\n")).is_err());
    }
}
