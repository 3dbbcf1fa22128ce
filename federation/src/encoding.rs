//! How the integers of an update lie in its bytes: whole, or quantised to 16 or 8 bits a coordinate.
//!
//! ```text
//! int32   = value:i32 ...
//! int16/8 = block ...           a block holds 1024 coordinates, the last one what is left
//! block   = shift:u8 (value:i16 or i8) ...                       coordinate = value · 2^shift
//! ```
//!
//! A block's shift is the smallest with which its largest coordinate fits.  Rounding is stochastic (QSGD,
//! Alistarh et al. 2017, section 3.1): a coordinate goes to one of its two neighbours on the coarser grid,
//! with probabilities that make its expectation the coordinate.  Draws come from BLAKE3 of plan, round and
//! client, so that a simulation rounds as the deployed client does; nothing rests on their secrecy, since
//! quantising reads only what is released already.  What is decoded is an integer on the plan's grid again,
//! so sums stay exact.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{ClientId, PlanDigest};

/// Coordinates that share a shift.
const BLOCK: usize = 1024;
/// Largest shift: a coordinate has 32 bits.
const SHIFT_MAX: u8 = 31;

/// How the integers of an update lie in its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateEncoding {
    /// Four bytes a coordinate, exact.
    #[default]
    Int32,
    /// Two bytes a coordinate and one more for every 1024; wrong by less than a 16,383rd of the largest
    /// coordinate of the same 1024.
    Int16,
    /// One byte a coordinate and one more for every 1024; wrong by less than a 63rd of the largest
    /// coordinate of the same 1024.
    Int8,
}

/// What seeds the rounding of one update.
#[derive(Clone, Copy, Debug)]
pub struct Rounding<'a> {
    /// Under which plan it was made.
    pub plan: PlanDigest,
    /// In which round.
    pub round: u32,
    /// By whom.
    pub client: &'a ClientId,
}

impl UpdateEncoding {
    /// Whether it is the exact one, which a plan need not name.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        *self == Self::Int32
    }

    /// Bytes of `n` coordinates; saturates.
    #[must_use]
    pub fn bytes(self, n: u64) -> u64 {
        match self {
            Self::Int32 => n.saturating_mul(4),
            _ => n.saturating_mul(self.width() as u64).saturating_add(n.div_ceil(BLOCK as u64)),
        }
    }

    fn width(self) -> usize {
        match self {
            Self::Int32 => 4,
            Self::Int16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Largest magnitude that a quantised value has.
    fn largest(self) -> u64 {
        match self {
            Self::Int32 => i32::MAX as u64,
            Self::Int16 => i16::MAX as u64,
            Self::Int8 => i8::MAX as u64,
        }
    }

    /// The bytes of `values`, `[n_parameters]`.
    #[must_use]
    pub fn encode(self, values: &[i32], rounding: Rounding<'_>) -> Vec<u8> {
        if self == Self::Int32 {
            return values.iter().map(|v| v.to_le_bytes()).collect::<Vec<_>>().into_flattened();
        }
        let mut hasher = blake3::Hasher::new_derive_key("comity update rounding v1");
        hasher.update(&rounding.plan.0).update(&rounding.round.to_le_bytes());
        hasher.update(rounding.client.to_string().as_bytes());
        let mut draws = hasher.finalize_xof();
        let mut drawn = [0; 4 * BLOCK];
        let mut bytes = Vec::with_capacity(self.bytes(values.len() as u64) as usize);
        for block in values.chunks(BLOCK) {
            draws.fill(&mut drawn);
            let largest = block.iter().map(|v| u64::from(v.unsigned_abs())).max().unwrap_or(0);
            let fits = |shift: &u8| largest.div_ceil(1 << *shift) <= self.largest();
            let shift = (0..=SHIFT_MAX).find(fits).expect("2^31 over 2^31 is one");
            bytes.push(shift);
            let (draws, _) = drawn.as_chunks::<4>();
            for (value, draw) in block.iter().zip(draws) {
                let step = (1i64 << shift) - 1;
                // Up with a probability of what is left below, in units of the coarser grid.
                let draw = i64::from(u32::from_le_bytes(*draw)) & step;
                let rounded = (i64::from(*value) + draw) >> shift;
                match self {
                    Self::Int8 => bytes.push(rounded as i8 as u8),
                    _ => bytes.extend((rounded as i16).to_le_bytes()),
                }
            }
        }
        bytes
    }

    /// Which bytes hold the coordinates `range` of `n`: to be read and given to [`decode`](Self::decode).
    #[must_use]
    pub fn span(self, range: &Range<usize>, n: usize) -> Range<u64> {
        if self == Self::Int32 {
            return 4 * range.start as u64..4 * range.end as u64;
        }
        let start = range.start / BLOCK * BLOCK;
        let end = range.end.div_ceil(BLOCK).saturating_mul(BLOCK).min(n);
        self.bytes(start as u64)..self.bytes(end as u64)
    }

    /// The coordinates `range` as little-endian words of four bytes in `into`, out of the bytes of their
    /// [`span`](Self::span).
    ///
    /// Whatever the bytes, they mean something: a shift above 31 is 31, and what passes 32 bits is the
    /// nearest that does not.
    ///
    /// # Panics
    /// If `encoded` or `into` has another length than `range` asks for.
    pub fn decode(self, range: &Range<usize>, encoded: &[u8], into: &mut [u8]) {
        assert_eq!(into.len(), 4 * range.len(), "four bytes a coordinate");
        if self == Self::Int32 {
            return into.copy_from_slice(encoded);
        }
        let (words, _) = into.as_chunks_mut::<4>();
        let mut at = range.start / BLOCK * BLOCK;
        for block in encoded.chunks(1 + BLOCK * self.width()) {
            let (shift, values) = (block[0].min(SHIFT_MAX), &block[1..]);
            let of_block = at..at + values.len() / self.width();
            let wanted = range.start.max(at)..range.end.min(of_block.end);
            for coordinate in wanted {
                let value = match self {
                    Self::Int8 => i64::from(values[coordinate - at] as i8),
                    _ => {
                        let i = 2 * (coordinate - at);
                        i64::from(i16::from_le_bytes([values[i], values[i + 1]]))
                    }
                };
                let value = (value << shift).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
                words[coordinate - range.start] = (value as i32).to_le_bytes();
            }
            at = of_block.end;
        }
        assert!(at >= range.end, "the encoded bytes are shorter than their span");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use UpdateEncoding::{Int8, Int16, Int32};
    use proptest::prelude::*;

    fn rounding(client: &ClientId, round: u32) -> Rounding<'_> {
        Rounding { plan: PlanDigest([5; 32]), round, client }
    }

    fn decoded(encoding: UpdateEncoding, bytes: &[u8], range: Range<usize>, n: usize) -> Vec<i32> {
        let span = encoding.span(&range, n);
        let mut words = vec![0; 4 * range.len()];
        encoding.decode(&range, &bytes[span.start as usize..span.end as usize], &mut words);
        words.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect()
    }

    #[test]
    fn small_values_are_exact_and_zeros_are_zero_bytes() {
        let client: ClientId = "KR/a".parse().unwrap();
        let values: Vec<i32> = (0..3000).map(|i| i % 255 - 127).collect();
        for encoding in [Int8, Int16, Int32] {
            let bytes = encoding.encode(&values, rounding(&client, 1));
            assert_eq!(bytes.len() as u64, encoding.bytes(3000));
            assert_eq!(decoded(encoding, &bytes, 0..3000, 3000), values, "{encoding:?}");
            let zeros = encoding.encode(&[0; 1500], rounding(&client, 1));
            assert!(zeros.iter().all(|byte| *byte == 0));
        }
        assert_eq!(Int8.bytes(u64::MAX), u64::MAX);
    }

    /// False alarm below 1e-9 for each encoding: the mean of 4,000 draws, eight deviations wide.
    #[test]
    fn rounding_is_right_on_average_and_another_for_each_client_and_round() {
        let client: ClientId = "KR/a".parse().unwrap();
        for (encoding, largest) in [(Int8, 1 << 24), (Int16, 1 << 28)] {
            let values = [vec![largest], vec![123_456; 999]].concat();
            let mut sum = 0i64;
            let mut seen = Vec::new();
            for round in 0..4 {
                let bytes = encoding.encode(&values, rounding(&client, round));
                let got = decoded(encoding, &bytes, 0..1000, 1000);
                sum += got[1..].iter().map(|v| i64::from(*v)).sum::<i64>();
                seen.push(bytes);
            }
            let mean = sum as f64 / (4.0 * 999.0);
            let step = f64::from(largest) / encoding.largest() as f64 * 2.0;
            let deviation = step / 2.0 / (4.0 * 999.0f64).sqrt();
            assert!((mean - 123_456.0).abs() < 8.0 * deviation, "{encoding:?}: {mean}");
            seen.dedup();
            assert_eq!(seen.len(), 4);
            let other: ClientId = "JP/b".parse().unwrap();
            assert_ne!(encoding.encode(&values, rounding(&other, 0)), seen[0]);
        }
    }

    proptest! {
        #[test]
        fn any_part_decodes_as_the_whole_does_and_lies_near_what_was_encoded(
            values in prop::collection::vec(any::<i32>(), 1..3000),
            from in any::<prop::sample::Index>(),
            len in any::<prop::sample::Index>(),
        ) {
            let client: ClientId = "KR/a".parse().unwrap();
            let n = values.len();
            let from = from.index(n);
            let range = from..from + len.index(n - from + 1);
            for (encoding, part) in [(Int8, 63), (Int16, 16_383)] {
                let bytes = encoding.encode(&values, rounding(&client, 1));
                let whole = decoded(encoding, &bytes, 0..n, n);
                prop_assert_eq!(&decoded(encoding, &bytes, range.clone(), n), &whole[range.clone()]);
                for (block, got) in values.chunks(BLOCK).zip(whole.chunks(BLOCK)) {
                    let largest = block.iter().map(|v| i64::from(v.unsigned_abs())).max().unwrap();
                    for (value, got) in block.iter().zip(got) {
                        let wrong = (i64::from(*value) - i64::from(*got)).abs();
                        prop_assert!(wrong * part <= largest, "{value} became {got}");
                    }
                }
            }
        }

        #[test]
        fn any_bytes_decode_to_something(bytes in prop::collection::vec(any::<u8>(), 2..2500)) {
            for encoding in [Int8, Int16] {
                // The largest number of coordinates that the bytes can be.
                let n = (0..bytes.len() as u64)
                    .rev()
                    .find(|n| encoding.bytes(*n) <= bytes.len() as u64)
                    .unwrap() as usize;
                let whole = decoded(encoding, &bytes, 0..n, n);
                prop_assert_eq!(whole.len(), n);
            }
        }
    }
}
