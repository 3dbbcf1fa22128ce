//! IDX files (LeCun's format for MNIST): two zero bytes, a type, a number of dimensions, the
//! dimensions as big-endian `u32`, then the values.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::source::Input;
use crate::{Contract, DataError, Dataset, Scale};

/// Magic of unsigned bytes; the last byte is the number of dimensions.
const MAGIC_BYTES: u32 = 0x0000_0800;
/// Most bytes of one file when unpacked: 16 GiB.
const FILE_BYTES_MAX: u64 = 1 << 34;
/// Most dimensions of an images file: examples, channels, height, width.
const N_DIMS_MAX: u32 = 4;

pub(crate) fn read(
    images: &Path,
    labels: &Path,
    contract: &Contract,
) -> Result<Dataset, DataError> {
    let n_features = contract.n_features()?;
    if contract.scale != Scale::Bytes {
        return Err(DataError::Scale {
            path: images.to_owned(),
            reason: "IDX files hold bytes, the plan asks for real numbers; export the data as CSV",
        });
    }
    let (image_dims, features) = values(images, 2..=N_DIMS_MAX, "0x00000802 to 0x00000804")?;
    let (label_dims, label_bytes) = values(labels, 1..=1, "0x00000801")?;
    let (n_images, n_labels) = (image_dims[0], label_dims[0]);
    if without_channel(&image_dims[1..]) != without_channel(&contract.shape) {
        return Err(DataError::Shape {
            path: images.to_owned(),
            found: image_dims[1..].to_vec(),
            expected: contract.shape.clone(),
        });
    }
    debug_assert_eq!(features.len(), n_images * n_features);
    if n_images != n_labels {
        return Err(DataError::Count {
            images: images.to_owned(),
            labels: labels.to_owned(),
            n_images: n_images as u64,
            n_labels: n_labels as u64,
        });
    }
    if let Some(row) = label_bytes.iter().position(|b| usize::from(*b) >= contract.n_classes) {
        return Err(DataError::Label {
            path: labels.to_owned(),
            row: row as u64,
            n_classes: contract.n_classes,
        });
    }
    Dataset::from_bytes(contract, features, label_bytes.into_iter().map(u32::from).collect())
}

/// A grey image may be written with or without its one channel.
fn without_channel(shape: &[usize]) -> &[usize] {
    match shape {
        [1, image @ ..] if image.len() == 2 => image,
        other => other,
    }
}

/// Dimensions and values of the file at `path`.
fn values(
    path: &Path,
    n_dims_allowed: std::ops::RangeInclusive<u32>,
    expected_magic: &'static str,
) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let path_buf = || path.to_owned();
    let mut input = Input::open(path)?;
    let start = input.read_up_to(4)?;
    if start.is_empty() {
        return Err(DataError::Empty { path: path_buf() });
    }
    let Ok(magic) = <[u8; 4]>::try_from(start.as_slice()).map(u32::from_be_bytes) else {
        return Err(DataError::Truncated {
            path: path_buf(),
            expected: 4,
            found: start.len() as u64,
        });
    };
    let n_dims = magic & 0xff;
    if magic & !0xff != MAGIC_BYTES || !n_dims_allowed.contains(&n_dims) {
        return Err(DataError::Magic { path: path_buf(), found: magic, expected: expected_magic });
    }
    let header_bytes = 4 + 4 * u64::from(n_dims);
    let header = input.read_up_to(header_bytes - 4)?;
    let (words, _) = header.as_chunks::<4>();
    if words.len() as u64 != u64::from(n_dims) {
        return Err(DataError::Truncated {
            path: path_buf(),
            expected: header_bytes,
            found: 4 + header.len() as u64,
        });
    }
    let dims: Vec<usize> = words.iter().map(|word| u32::from_be_bytes(*word) as usize).collect();
    let n_values = dims
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))
        .filter(|n| *n <= FILE_BYTES_MAX)
        .ok_or_else(|| DataError::TooLarge { path: path_buf(), bytes_max: FILE_BYTES_MAX })?;
    if n_values == 0 {
        return Err(DataError::Empty { path: path_buf() });
    }
    // One byte more than announced, to notice what does not belong there.
    let values = input.read_up_to(n_values + 1)?;
    let found = values.len() as u64;
    let expected = header_bytes + n_values;
    match found.cmp(&n_values) {
        std::cmp::Ordering::Less => {
            Err(DataError::Truncated { path: path_buf(), expected, found: header_bytes + found })
        }
        std::cmp::Ordering::Greater => Err(DataError::ExtraBytes { path: path_buf(), expected }),
        std::cmp::Ordering::Equal => Ok((dims, values)),
    }
}

/// Writes `images.idx` and `labels.idx` into the folder `dir`, which must exist.
///
/// # Errors
/// [`DataError::Scale`] if the features are not bytes or there are more than 256 classes;
/// [`DataError::Empty`] if there is no example; [`DataError::Io`] if a file cannot be written.
pub fn write_idx(dir: &Path, dataset: &Dataset) -> Result<(), DataError> {
    let (images, labels) = (dir.join("images.idx"), dir.join("labels.idx"));
    if dataset.is_empty() {
        return Err(DataError::Empty { path: images });
    }
    let unfit = |reason| DataError::Scale { path: images.clone(), reason };
    let features = dataset
        .bytes()
        .ok_or_else(|| unfit("IDX files hold bytes, this data set holds real numbers; use CSV"))?;
    if dataset.n_classes() > 256 {
        return Err(unfit("IDX labels are single bytes, there are more than 256 classes; use CSV"));
    }
    let shape = without_channel(dataset.shape());
    if shape.len() as u32 >= N_DIMS_MAX {
        return Err(unfit("an example has more than three dimensions; use CSV"));
    }
    let dims: Vec<usize> = std::iter::once(dataset.len()).chain(shape.iter().copied()).collect();
    let label_bytes: Vec<u8> = dataset.labels().iter().map(|label| *label as u8).collect();
    write(&images, &dims, features)?;
    write(&labels, &dims[..1], &label_bytes)
}

fn write(path: &Path, dims: &[usize], values: &[u8]) -> Result<(), DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut header = (MAGIC_BYTES | dims.len() as u32).to_be_bytes().to_vec();
    for dim in dims {
        let dim = u32::try_from(*dim).map_err(|_| DataError::TooLarge {
            path: path.to_owned(),
            bytes_max: FILE_BYTES_MAX,
        })?;
        header.extend(dim.to_be_bytes());
    }
    let mut file = File::create(path).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    file.write_all(values).map_err(io)?;
    file.sync_all().map_err(io)
}
