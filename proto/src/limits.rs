//! Every limit of the wire, by name: what a peer may send, hold open and keep waiting.
//!
//! **Memory.** A member's certificate is needed for everything beyond a handshake, so what a hostile peer can
//! make the coordinator hold is counted for each identity: [`CONNECTIONS_EACH_MAX`] connections, of which each
//! buffers at most [`CONNECTION_WINDOW_BYTES`] that nobody has read and [`CONCURRENT_STREAMS_MAX`] messages of
//! [`REQUEST_BYTES_MAX`]; one upload and [`DOWNLOADS_EACH_MAX`] downloads of some [`QUEUED_CHUNKS_MAX`] chunks
//! each.  That is 8 × (20 + 8 × 1) MiB and less than 16 MiB of chunks: at most 240 MiB for each hostile
//! member, however many streams, frames and bytes it sends.  In ordinary work a member costs one connection
//! and a few chunks.  Whoever has no certificate can hold one of [`HANDSHAKES_MAX`] handshakes, some 32 KiB
//! each, until another one needs its place.
//!
//! All uploads together have at most some [`UNREAD_BYTES_MAX`] waiting for the disk before their connections
//! are read no further.
//!
//! **Time.** Nothing fails while bytes progress: a transfer is given up when [`PROGRESS_TIMEOUT`] passes
//! without a whole chunk, and goes on later where it stopped.  A link slower than a chunk in that time,
//! 70 kbit/s, is too slow.  Deadlines that a peer sets itself are its own affair: a call that has none, or one
//! in a hundred years, is bounded by its connection's age.

use std::time::Duration;

/// Largest message, in bytes; a chunk and its framing stay well below.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest message that a client sends, in bytes: a chunk with its framing, or the names of its runs.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Largest plan, as TOML or JSON, in bytes.
pub const PLAN_BYTES_MAX: usize = 1 << 20;
/// Certificates that may come with a signature: the signer's own, an issuing CA's, and room for one more.
pub const CHAIN_MAX: usize = 3;
/// Largest certificate in a signature's chain, in bytes; ours have some 600.
pub const CERTIFICATE_BYTES_MAX: usize = 4 << 10;
/// Longest signature, in bytes; ECDSA P-256 has at most 72.
pub const SIGNATURE_BYTES_MAX: usize = 128;
/// Consents of institutions that may come with an order; with their certificates each has some 2,000 bytes.
pub const CONSENTS_MAX: usize = 200;
/// Countersignatures of the record before that come with a record.
pub const WITNESSES_MAX: usize = 32;
/// Longest evaluation in a model's certificate, in bytes.
pub const EVALUATION_BYTES_MAX: usize = 256 << 10;
/// Runs that a client may name when it begins to follow.
pub const OPEN_RUNS_MAX: usize = 10_000;

/// Connections in all: with the handshakes below the 1,024 open files that a process usually may have.
pub const CONNECTIONS_MAX: usize = 640;
/// Connections of one identity; one more ends its oldest.
pub const CONNECTIONS_EACH_MAX: usize = 8;
/// Accepted connections that wait for the server.
pub const ACCEPTED_MAX: usize = 64;
/// How old a connection may grow: its client is asked to connect anew somewhat earlier, up to a tenth.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3_600);
/// How long an old connection is left to what it carries before it is cut.
pub const CONNECTION_AGE_GRACE: Duration = Duration::from_secs(300);

/// Handshakes under way at once; one more ends the oldest of the address that has most of them.
pub const HANDSHAKES_MAX: usize = 256;
/// How long a handshake is left to itself even then: it takes two round trips. Until one may be ended, new
/// connections wait in the kernel's queue, which thus never holds more than a few seconds' worth.
pub const HANDSHAKE_UNDISTURBED: Duration = Duration::from_secs(1);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client waits for a TCP connection and the handshake together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a quiet connection is probed, and how long the answer may take.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Connections of those who join or renew, in all and from one address, and how long one may last.
pub const ENROLMENT_CONNECTIONS_MAX: usize = 64;
/// See [`ENROLMENT_CONNECTIONS_MAX`].
pub const ENROLMENT_CONNECTIONS_EACH_MAX: usize = 16;
/// See [`ENROLMENT_CONNECTIONS_MAX`].
pub const ENROLMENT_CONNECTION_TIME: Duration = Duration::from_secs(60);
/// Largest message of those who join or renew, in bytes: a secret and a request for a certificate.
pub const ENROLMENT_BYTES_MAX: usize = 8 << 10;
/// In which calls of one address to join or renew are counted...
pub const ENROLMENT_PERIOD: Duration = Duration::from_secs(60);
/// ... the most of them: a country behind one address, and each of its nodes asks a few times...
pub const ENROLMENT_CALLS_MAX: u32 = 600;
/// ... and after so many that were refused none is looked at.
pub const ENROLMENT_FAILURES_MAX: u32 = 20;
/// Addresses that are counted in a period; others have to wait for the next.
pub const ENROLMENT_ADDRESSES_MAX: usize = 4_096;
/// Longest time for which an invitation holds.
pub const INVITATION_TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Longest name of an institution or a person as people write it, in bytes.
pub const TITLE_BYTES_MAX: usize = 200;
/// Longest reason that an operator gives for a change of members, in bytes.
pub const REASON_BYTES_MAX: usize = 500;

/// Streams, and with them calls, that one connection may have open.
pub const CONCURRENT_STREAMS_MAX: u32 = 8;
/// Streams that a peer opened and reset before they were looked at; one more ends the connection.
pub const PENDING_RESETS_MAX: usize = 20;
/// Streams that we reset because the peer broke the protocol; one more ends the connection.
pub const ERROR_RESETS_MAX: usize = 128;
/// HTTP/2 window of one stream: at 200 ms of round-trip time the usual ones carry a tenth.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// HTTP/2 window of one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 20 << 20;
/// Largest HTTP/2 frame, in bytes: a chunk in one frame rather than in 32.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Largest list of headers, in bytes.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;

/// How long a transfer may stand still before it is given up; nothing fails while bytes progress.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Updates on their way to the coordinator at once; of each client one, the newest.
pub const UPLOADS_MAX: usize = 64;
/// Bytes of uploads that the server holds until they are written, of all connections together...
pub const UNREAD_BYTES_MAX: usize = 32 << 20;
/// ... but of each connection at least so many: some chunks, of which each must be whole to be taken.
pub const UNREAD_EACH_BYTES_MIN: usize = 2 << 20;
/// Downloads of one client at once; one more ends its oldest.
pub const DOWNLOADS_EACH_MAX: usize = 2;
/// Streams of assignments to one client; one more ends its oldest.
pub const FOLLOWS_EACH_MAX: usize = 4;
/// Chunks of one transfer that wait for the disk or for the network.
pub const QUEUED_CHUNKS_MAX: usize = 4;
/// Assignments that wait for a slow client on one stream.
pub const QUEUED_ASSIGNMENTS_MAX: usize = 4;
/// First and longest pause of a client before it tries again.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
