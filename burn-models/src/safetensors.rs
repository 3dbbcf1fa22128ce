//! Models as safetensors files, with PyTorch's names and layouts, for use outside of Comity.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use comity_federation::{Manifest, Parameters};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// What a file may be larger than its tensors: names, shapes and metadata.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// Why a safetensors file cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The operating system refused.
    #[error("{}: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not safetensors, or damaged.
    #[error("{}: not a usable safetensors file ({reason}); export the model again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// From the reader.
        reason: String,
    },
    /// A file for a larger model.
    #[error("{}: {found} bytes, the model needs at most {bytes_max}; is it a file of another model?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A tensor of the model is not there.
    #[error("{}: tensor {name} is missing; is it a file of another model?", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor that the model does not have.
    #[error("{}: tensor {name:?} is not in the model; is it a file of another model?", path.display())]
    Extra {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor of another type.
    #[error("{}: tensor {name} holds {found}, not F32; convert it to 32-bit floats", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// A tensor of another shape.
    #[error("{}: tensor {name} has shape {found:?}, the model {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Of the model.
        expected: Vec<usize>,
        /// Of the file.
        found: Vec<usize>,
    },
    /// The parameters are of another model.
    #[error("the model has {expected} parameters but {got} were given")]
    Parameters {
        /// Of the manifest.
        expected: usize,
        /// Given.
        got: usize,
    },
}

/// Writes `parameters` to `path` with `metadata` as the file's key-value pairs. The file appears
/// whole or not at all.
///
/// # Errors
/// [`SafetensorsError::Parameters`] if they do not fit `manifest`; [`SafetensorsError::Io`].
pub fn write_safetensors(
    path: &Path,
    manifest: &Manifest,
    parameters: &Parameters,
    metadata: &BTreeMap<String, String>,
) -> Result<(), SafetensorsError> {
    let expected = manifest.n_parameters();
    if parameters.values().len() != expected {
        return Err(SafetensorsError::Parameters { expected, got: parameters.values().len() });
    }
    let format = |reason: String| SafetensorsError::Format { path: path.to_owned(), reason };
    let bytes = parameters.to_bytes();
    let mut start = 0;
    let mut views = Vec::with_capacity(manifest.tensors.len());
    for tensor in &manifest.tensors {
        let end = start + 4 * tensor.n_elements();
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), &bytes[start..end])
            .map_err(|error| format(error.to_string()))?;
        views.push((tensor.name.clone(), view));
        start = end;
    }
    let file = safetensors::serialize(views, None).map_err(|error| format(error.to_string()))?;
    let file = with_metadata(&file, metadata);
    let io = |source| SafetensorsError::Io { path: path.to_owned(), source };
    let partial = path.with_added_extension("partial");
    let mut out = File::create(&partial).map_err(io)?;
    out.write_all(&file).map_err(io)?;
    out.sync_all().map_err(io)?;
    std::fs::rename(&partial, path).map_err(io)
}

/// `file`, which has at least one tensor, with `metadata` in its header.
///
/// The library takes them as a hash map and writes them in an order of chance, so that the same model
/// would have other bytes each time.
fn with_metadata(file: &[u8], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let (tensors, data) = rest.split_at(length);
    let metadata = serde_json::to_string(metadata).expect("texts are JSON");
    let mut header = format!("{{\"__metadata__\":{metadata},").into_bytes();
    header.extend(&tensors[1..]);
    // The data begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), data].concat()
}

/// Reads the tensors of `manifest`, and no others, from `path`.
///
/// # Errors
/// [`SafetensorsError`] for the first thing that does not fit.
pub fn read_safetensors(path: &Path, manifest: &Manifest) -> Result<Parameters, SafetensorsError> {
    let path_buf = || path.to_owned();
    let io = |source| SafetensorsError::Io { path: path_buf(), source };
    let bytes_max = 4 * manifest.n_parameters() as u64 + HEADER_BYTES_MAX;
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > bytes_max {
        return Err(SafetensorsError::TooLarge { path: path_buf(), found, bytes_max });
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| SafetensorsError::Format {
        path: path_buf(),
        reason: error.to_string(),
    })?;
    let mut names = tensors.names();
    names.sort_unstable();
    if let Some(extra) = names.iter().find(|n| manifest.tensors.iter().all(|t| t.name != **n)) {
        return Err(SafetensorsError::Extra { path: path_buf(), name: (*extra).to_owned() });
    }
    let mut values = Vec::with_capacity(manifest.n_parameters());
    for expected in &manifest.tensors {
        let name = expected.name.clone();
        let Ok(tensor) = tensors.tensor(&name) else {
            return Err(SafetensorsError::Missing { path: path_buf(), name });
        };
        if tensor.dtype() != Dtype::F32 {
            let found = format!("{:?}", tensor.dtype());
            return Err(SafetensorsError::Dtype { path: path_buf(), name, found });
        }
        if tensor.shape() != expected.shape {
            return Err(SafetensorsError::Shape {
                path: path_buf(),
                name,
                expected: expected.shape.clone(),
                found: tensor.shape().to_vec(),
            });
        }
        let (words, _) = tensor.data().as_chunks::<4>();
        values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
    }
    Ok(Parameters::new(values))
}
