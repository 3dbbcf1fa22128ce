//! What is fed with arbitrary bytes: one function for each thing that reads what somebody else wrote.
//!
//! Each function has a target of the same name for `cargo fuzz` (`tests/fuzz`), and is played by the
//! stable toolchain in `make test`: seeds from `tests/fuzz/corpus`, mutated with a seed (`run`).  A
//! function panics when bytes do what they must not: read back as something else, change a file that was
//! refused, or open a connection.
//!
//! Deliberately not here: what our own programs write for themselves and check by a hash before they read
//! it (the index's values).

mod files;
mod network;
mod wire;

#[cfg(test)]
mod mutate;
#[cfg(test)]
mod run;

pub use files::{
    certificates, client_toml, coordinator_toml, csv, idx, journal, ledger_lines, safetensors,
};
pub use network::first_bytes;
pub use wire::{chunk_stream, names, plan_json, plan_toml, wire_messages};

/// A function that is fed, by its name; it returns whether the bytes were understood.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const TARGETS: [Target; 14] = [
    ("certificates", certificates),
    ("chunk_stream", chunk_stream),
    ("client_toml", client_toml),
    ("coordinator_toml", coordinator_toml),
    ("csv", csv),
    ("first_bytes", first_bytes),
    ("idx", idx),
    ("journal", journal),
    ("ledger_lines", ledger_lines),
    ("names", names),
    ("plan_json", plan_json),
    ("plan_toml", plan_toml),
    ("safetensors", safetensors),
    ("wire_messages", wire_messages),
];

/// The input up to the first NUL byte, and what follows it: two inputs in one.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}
