//! TensorBoard's event files: `TFRecord`s of `Event` messages, written by hand.
//!
//! Two formats of a dozen fields each, of which a scalar needs six; the crate that writes them
//! brings image codecs and a second protobuf library.  The wire format is that of
//! `tensorflow/core/util/event.proto` and `tensorflow/core/lib/io/record_writer.h`.

/// An `Event` that says which format follows, as each file has to begin.
pub(super) fn header(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    double_field(&mut event, 1, wall_time);
    bytes_field(&mut event, 3, b"brain.Event:2");
    record(&event)
}

/// An `Event` with `scalars` at `step`, which happened `wall_time` seconds after 1970.
pub(super) fn scalars(wall_time: f64, step: u32, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut one = Vec::new();
        bytes_field(&mut one, 1, tag.as_bytes());
        key(&mut one, 2, FIXED_32);
        one.extend((*value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &one);
    }
    let mut event = Vec::new();
    double_field(&mut event, 1, wall_time);
    key(&mut event, 2, VARINT);
    varint(&mut event, u64::from(step));
    bytes_field(&mut event, 5, &summary);
    record(&event)
}

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;

fn key(to: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(to, field << 3 | wire_type);
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn double_field(to: &mut Vec<u8>, field: u64, value: f64) {
    key(to, field, FIXED_64);
    to.extend(value.to_le_bytes());
}

fn bytes_field(to: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(to, field, LENGTH_DELIMITED);
    varint(to, bytes.len() as u64);
    to.extend(bytes);
}

/// Length, masked checksum of the length, bytes, masked checksum of the bytes.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(bytes);
    record.extend(masked(crc32c(bytes)).to_le_bytes());
    record
}

/// A checksum of bytes that hold checksums themselves would be weak, so `TFRecord` turns it.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's polynomial, reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    #[test]
    fn checksums_are_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    /// What tensorboard 2.21's own `RecordWriter` writes of the same events.
    #[test]
    fn records_are_tensorboards_own_to_the_byte() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&header(1_720_000_002.5)),
            "1800000000000000a37f4b22090000a08047a1d9411a0d627261696e2e4576656e743a320f1c262a"
        );
        let values = [("test/loss".to_owned(), 0.5), ("epsilon/KR".to_owned(), -3.25)];
        assert_eq!(
            hex(&scalars(1_720_000_004.25, 300, &values)),
            "33000000000000000ca72056090000108147a1d94110ac022a250a100a09746573742f6c6f7373150000\
             003f0a110a0a657073696c6f6e2f4b5215000050c04c9a06d6"
        );
    }

    #[test]
    fn varints_are_protobufs() {
        let mut bytes = Vec::new();
        varint(&mut bytes, 300);
        assert_eq!(bytes, [0xac, 0x02]);
    }
}
