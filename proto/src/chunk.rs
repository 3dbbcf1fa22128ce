//! Models and updates as chunks: contiguous, in order, and no longer than announced.

use crate::{WireError, v1};

/// Bytes in a full chunk.
pub const CHUNK_BYTES: usize = 512 << 10;
/// Bytes that any chunk but the last has at least: who sends fewer does not progress.
pub const CHUNK_BYTES_MIN: usize = 16 << 10;

/// Checks that arriving chunks are contiguous and end where they were announced to end.
#[derive(Debug)]
pub struct Reassembly {
    next: u64,
    total: u64,
}

impl Reassembly {
    /// Expects the bytes from `offset` to `total`.
    #[must_use]
    pub fn new(offset: u64, total: u64) -> Self {
        Self { next: offset, total }
    }

    /// Checks the next chunk.
    ///
    /// # Errors
    /// [`WireError::Chunk`] if it is empty, too long, out of order, or passes the end.
    pub fn accept(&mut self, chunk: &v1::Chunk) -> Result<(), WireError> {
        let len = chunk.data.len() as u64;
        let problem = if chunk.offset != self.next {
            Some(format!("starts at {}, expected {}", chunk.offset, self.next))
        } else if len == 0 || len > CHUNK_BYTES as u64 {
            Some(format!("has {len} bytes; a chunk has 1 to {CHUNK_BYTES}"))
        } else if len > self.total.saturating_sub(self.next) {
            Some(format!("passes the announced end at {}", self.total))
        } else if len < CHUNK_BYTES_MIN as u64 && self.next + len < self.total {
            Some(format!("has {len} bytes; any but the last has at least {CHUNK_BYTES_MIN}"))
        } else {
            None
        };
        match problem {
            Some(problem) => Err(WireError::Chunk(problem)),
            None => {
                self.next += len;
                Ok(())
            }
        }
    }

    /// Checks that everything arrived.
    ///
    /// # Errors
    /// [`WireError::Chunk`] if bytes are missing.
    pub fn finish(&self) -> Result<(), WireError> {
        if self.next == self.total {
            return Ok(());
        }
        Err(WireError::Chunk(format!(
            "the stream ended after {} of {} bytes",
            self.next, self.total
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, len: usize) -> v1::Chunk {
        v1::Chunk { offset, data: vec![0; len].into() }
    }

    #[test]
    fn chunks_are_taken_from_any_offset_to_the_end() {
        let total = 3 * CHUNK_BYTES as u64 + 1;
        for from in [0, 1, CHUNK_BYTES as u64, total - 1, total] {
            let mut reassembly = Reassembly::new(from, total);
            let mut at = from;
            while at < total {
                assert!(reassembly.finish().is_err());
                let len = (total - at).min(CHUNK_BYTES as u64);
                reassembly.accept(&chunk(at, len as usize)).unwrap();
                at += len;
            }
            reassembly.finish().unwrap();
        }
    }

    // BAD_INPUTS 64, 65
    #[test]
    fn chunks_out_of_order_twice_missing_too_long_or_too_short_are_refused() {
        let n = CHUNK_BYTES_MIN;
        let mut reassembly = Reassembly::new(0, 2 * n as u64 + 2);
        reassembly.accept(&chunk(0, n)).unwrap();
        let next = n as u64;
        let bads = [
            chunk(0, n),
            chunk(next - 1, n),
            chunk(next + 1, n),
            chunk(next, n + 3),
            chunk(next, 0),
            chunk(next, n - 1),
            chunk(u64::MAX, 1),
        ];
        for bad in bads {
            assert!(reassembly.accept(&bad).is_err(), "{} of {}", bad.data.len(), bad.offset);
        }
        assert!(reassembly.finish().is_err());
        reassembly.accept(&chunk(next, n + 2)).unwrap();
        reassembly.finish().unwrap();
        assert!(Reassembly::new(0, 1 << 40).accept(&chunk(0, CHUNK_BYTES + 1)).is_err());
        assert!(Reassembly::new(9, 3).accept(&chunk(9, n)).is_err());
        assert!(Reassembly::new(u64::MAX, u64::MAX).accept(&chunk(u64::MAX, n)).is_err());
    }
}
