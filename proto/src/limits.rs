//! Every limit of the wire, by name.

use std::time::Duration;

/// Largest message, in bytes; a chunk and its framing stay well below.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest plan, as TOML or JSON, in bytes.
pub const PLAN_BYTES_MAX: usize = 1 << 20;
/// Streams that one connection may have open.
pub const CONCURRENT_STREAMS_MAX: u32 = 32;
/// Calls of one connection that are served at once; the rest wait.
pub const CONCURRENT_CALLS_MAX: usize = 16;
/// Handshakes under way at once; further connections wait in the kernel's queue.
pub const HANDSHAKES_MAX: usize = 64;
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client waits for a TCP connection and the handshake together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a quiet connection is probed, and how long the answer may take.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long a transfer may stand still before it is given up; nothing fails while bytes progress.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP/2 window of one stream: at 200 ms of round-trip time the usual ones carry a tenth.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// HTTP/2 window of one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Largest list of headers, in bytes.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
