//! The wire, and the only place that knows bytes: services, conversions, chunks, limits and the
//! connection below them.
//!
//! The generated code is committed (`src/gen`), so that building needs no `protoc`; a test
//! compares it with the `.proto` files.  Deliberately not here: who may call what (coordinator),
//! what a certificate means (`certs`), the rules of a run (`federation`).

pub mod chunk;
mod connections;
pub mod convert;
mod flow;
pub mod limits;
mod status;
pub mod transport;

/// Messages and services of protocol version 1, as generated.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod v1 {
    include!("gen/comity.v1.rs");
}

pub use convert::WireError;
pub use flow::Taking;
pub use status::status_of_rejection;

/// Version of the protocol that this software speaks.
pub const PROTOCOL: u32 = 1;
