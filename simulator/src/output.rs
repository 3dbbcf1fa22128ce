//! What the commands print and write: tables, JSON, and files that are whole or not there.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, LineStyle, Table, presets};
use serde::Serialize;

/// An error with advice, which is printed on a line of its own.
#[derive(Debug)]
pub(crate) struct Hint {
    error: anyhow::Error,
    /// What to do next.
    pub(crate) advice: String,
}

impl Hint {
    /// `error` with `advice`.
    pub(crate) fn attach(error: anyhow::Error, advice: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { error, advice: advice.into() })
    }
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The whole chain, so that it does not have to be told to the error's source as well.
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Hint {}

/// A table with `header`, the first column to the left and all others to the right.
pub(crate) fn table(header: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    // No lines between rows: a round is a line.
    let style = presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none());
    table.load_style(style).set_header(header).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// Prints to stdout.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Prints `value` to stdout as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&json(value)?)
}

/// `value` as JSON for files and people: indented, with a final newline.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Whether the reader of stdout went away (`comity-sim … | head`), which is no error.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Makes the folder of a command's results.
pub(crate) fn make_dir(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

/// An ε for a table, rounded up so that a table never understates it; `-` without DP.
pub(crate) fn epsilon_text(epsilon: Option<f64>) -> String {
    epsilon.map_or_else(|| "-".to_owned(), |epsilon| format!("{:.3}", round_up(epsilon)))
}

/// `epsilon` rounded up to three decimals.
fn round_up(epsilon: f64) -> f64 {
    // The small term keeps 8.0 at 8.000, although 8.0 * 1000.0 may be a bit above 8000.
    (epsilon * 1000.0 - 1e-9).ceil() / 1000.0
}

/// Bytes for a table.
pub(crate) fn bytes_text(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().si().to_string()
}

/// `values` with a space between.
pub(crate) fn joined(values: &[usize]) -> String {
    values.iter().enumerate().fold(String::new(), |mut text, (index, value)| {
        let separator = if index == 0 { "" } else { " " };
        let _ = write!(text, "{separator}{value}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epsilon_is_never_understated() {
        assert_eq!(epsilon_text(Some(8.0)), "8.000");
        assert_eq!(epsilon_text(Some(7.9991)), "8.000");
        assert_eq!(epsilon_text(Some(f64::INFINITY)), "inf");
        assert_eq!(epsilon_text(None), "-");
    }
}
