//! Models and updates as chunks: contiguous, in order, and no longer than announced.

use bytes::Bytes;

use crate::{WireError, v1};

/// Bytes in a full chunk.
pub const CHUNK_BYTES: usize = 512 << 10;

/// Cuts `bytes`, whose first byte has offset 0, into chunks without copying.
pub fn split(bytes: Bytes) -> impl Iterator<Item = v1::Chunk> + Send + 'static {
    let n_chunks = bytes.len().div_ceil(CHUNK_BYTES);
    (0..n_chunks).map(move |i| {
        let start = i * CHUNK_BYTES;
        let end = (start + CHUNK_BYTES).min(bytes.len());
        v1::Chunk { offset: start as u64, data: bytes.slice(start..end) }
    })
}

/// Checks that arriving chunks are contiguous and end where they were announced to end.
#[derive(Debug)]
pub struct Reassembly {
    next: u64,
    total: u64,
}

impl Reassembly {
    /// Expects `total` bytes from offset 0.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { next: 0, total }
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
        } else if self.next + len > self.total {
            Some(format!("passes the announced end at {}", self.total))
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

    #[test]
    fn chunks_come_back_whole() {
        for len in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let bytes = Bytes::from((0..len).map(|i| i as u8).collect::<Vec<_>>());
            let mut reassembly = Reassembly::new(len as u64);
            let mut back = Vec::new();
            for chunk in split(bytes.clone()) {
                reassembly.accept(&chunk).unwrap();
                back.extend_from_slice(&chunk.data);
            }
            reassembly.finish().unwrap();
            assert_eq!(back, bytes);
        }
    }

    #[test]
    fn chunks_out_of_order_missing_or_too_long_are_refused() {
        let chunk = |offset, len: usize| v1::Chunk { offset, data: vec![0; len].into() };
        let mut reassembly = Reassembly::new(10);
        reassembly.accept(&chunk(0, 4)).unwrap();
        for bad in [chunk(0, 4), chunk(5, 1), chunk(4, 7), chunk(4, 0), chunk(u64::MAX, 1)] {
            assert!(reassembly.accept(&bad).is_err(), "{bad:?}");
        }
        assert!(reassembly.finish().is_err());
        reassembly.accept(&chunk(4, 6)).unwrap();
        reassembly.finish().unwrap();
        assert!(Reassembly::new(1 << 40).accept(&chunk(0, CHUNK_BYTES + 1)).is_err());
    }
}
