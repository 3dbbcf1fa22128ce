//! Why a client's files cannot be used, without a word of what stands in them.

use std::path::PathBuf;

/// Why data could not be read or written. Never holds a value from a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("{}: {source}; check the path in the client's configuration and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A gzip stream is damaged or cut short.
    #[error("{}: damaged or incomplete gzip file; copy it again from its origin and compare checksums", path.display())]
    Gzip {
        /// The file.
        path: PathBuf,
    },
    /// Nothing in the file.
    #[error("{}: holds no rows; export the data again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// More than this software reads into memory.
    #[error("{}: more than {bytes_max} bytes when unpacked; split the data into smaller files", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// Not an IDX file of bytes, or the images' and labels' paths are swapped.
    #[error("{}: starts with {found:#010x}, not the IDX magic {expected}; check that images and labels are not swapped and hold unsigned bytes", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// Its first four bytes.
        found: u32,
        /// What would have been right.
        expected: &'static str,
    },
    /// Shorter than its header says.
    #[error("{}: ends after {found} bytes, its header announces {expected}; copy it again from its origin", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes announced.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Longer than its header says.
    #[error("{}: goes on after the {expected} bytes its header announces; copy it again from its origin", path.display())]
    ExtraBytes {
        /// The file.
        path: PathBuf,
        /// Bytes announced.
        expected: u64,
    },
    /// Examples of another shape than the plan's.
    #[error("{}: examples have shape {found:?}, the plan says {expected:?}; ask the coordinator which data the run is for", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape in the plan.
        expected: Vec<usize>,
    },
    /// Images and labels do not pair up.
    #[error("{} holds {n_images} images but {} holds {n_labels} labels; use files of the same export", images.display(), labels.display())]
    Count {
        /// The images.
        images: PathBuf,
        /// The labels.
        labels: PathBuf,
        /// Number of images.
        n_images: u64,
        /// Number of labels.
        n_labels: u64,
    },
    /// The plan's scale and the file's kind do not go together.
    #[error("{}: {reason}", path.display())]
    Scale {
        /// The file.
        path: PathBuf,
        /// What does not fit, and what to do.
        reason: &'static str,
    },
    /// A label outside the plan's classes.
    #[error("{} row {row}: the label is not a whole number from 0 to {}; map your classes to the plan's", path.display(), n_classes - 1)]
    Label {
        /// The file.
        path: PathBuf,
        /// Line of a text file, 1-based; example of a binary file, 0-based.
        row: u64,
        /// Number of classes in the plan.
        n_classes: usize,
    },
    /// No such column.
    #[error("{}: no {role} column {column}; the file has {n_columns} columns; set `{role}` to a name in the header or an index from 0", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The key that names it, such as `label`.
        role: &'static str,
        /// What the configuration asked for.
        column: String,
        /// Number of columns.
        n_columns: usize,
    },
    /// A row with too few or too many cells.
    #[error("{} line {line}: {found} cells, expected {expected}; check the separator (a comma) and quoting", path.display())]
    Ragged {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: u64,
        /// Cells in the row.
        found: usize,
        /// Cells in the rows before.
        expected: usize,
    },
    /// Another number of feature columns than the plan's shape holds.
    #[error("{}: {found} columns besides the label and the persons' ids, the plan's shape needs {expected}; name what is no feature under `drop`, or add columns", path.display())]
    Columns {
        /// The file.
        path: PathBuf,
        /// Feature columns in the file.
        found: usize,
        /// Features in the plan.
        expected: usize,
    },
    /// A cell that is not what the plan says.
    #[error("{} line {line}, column {column}: {reason}", path.display())]
    Cell {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: u64,
        /// 0-based.
        column: usize,
        /// What does not fit, and what to do.
        reason: &'static str,
    },
    /// One column for two things.
    #[error("{}: `{first}` and `{second}` name the same column; name each column once", path.display())]
    OneColumnTwice {
        /// The file.
        path: PathBuf,
        /// The key that names it.
        first: &'static str,
        /// The other key that does.
        second: &'static str,
    },
    /// Settings of a table that do not go together, or leave nothing.
    #[error("{}: {reason}", path.display())]
    Options {
        /// The file.
        path: PathBuf,
        /// What does not fit, and what to do.
        reason: &'static str,
    },
    /// A plan whose contract no data can meet.
    #[error(
        "the plan's data contract is not usable: {reason}; ask the coordinator for a corrected plan"
    )]
    Contract {
        /// What does not fit.
        reason: &'static str,
    },
}
