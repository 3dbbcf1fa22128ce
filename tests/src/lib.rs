//! Placeholder.
#[cfg(test)]
mod tidy;
