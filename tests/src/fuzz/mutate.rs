//! Mutations of a seed: what cuts, repeats, splices, flips and lies about lengths.

use crate::draws::Draws;

/// Longest input.
const BYTES_MAX: usize = 1 << 16;
/// Numbers at which a reader's arithmetic breaks.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];
/// The same where numbers are text, and what is no number.
const WORDS: [&str; 16] = [
    "0",
    "-1",
    "1e309",
    "nan",
    "-inf",
    "18446744073709551616",
    "99999999999999999999999999999999",
    "0.1e-400",
    "null",
    "\"\"",
    "[]",
    "{}",
    "true",
    "\u{0}",
    "\u{202e}",
    "../../x",
];

/// One of `seeds`, changed in one place, or now and then in more, up to eight.
pub(super) fn mutated(draws: &mut Draws, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[draws.below(seeds.len())].clone();
    for change in 1.. {
        mutate(draws, &mut bytes, seeds);
        if change == 8 || draws.once_in(2) {
            break;
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn mutate(draws: &mut Draws, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = draws.below(bytes.len() + 1);
    let end = at + draws.below((bytes.len() - at + 1).min(65));
    match draws.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << draws.below(8),
        1 if at < bytes.len() => bytes[at] = draws.below(256) as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let block = bytes[at..end].repeat(draws.between(1, 40) as usize);
            bytes.splice(at..at, block);
        }
        5 => {
            let other = &seeds[draws.below(seeds.len())];
            bytes.splice(at.., other[draws.below(other.len() + 1)..].iter().copied());
        }
        6 => {
            let number = NUMBERS[draws.below(NUMBERS.len())];
            let n = 1 << draws.below(4);
            let mut field = number.to_le_bytes()[..n].to_vec();
            if draws.once_in(2) {
                field.reverse();
            }
            let end = (at + n).min(bytes.len());
            bytes.splice(at..end, field);
        }
        7 => {
            let word = WORDS[draws.below(WORDS.len())];
            let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-+._".contains(byte);
            let until = bytes[at..].iter().position(|byte| !is_part(byte));
            let end = until.map_or(bytes.len(), |n| at + n);
            bytes.splice(at..end, word.bytes());
        }
        _ => {
            let block: Vec<u8> = (0..draws.below(17)).map(|_| draws.below(256) as u8).collect();
            bytes.splice(at..at, block);
        }
    }
}
