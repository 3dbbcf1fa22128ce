//! Where shards on many machines put their results: objects that are created once and never changed.
//!
//! A folder that the machines share, in every build; an S3-compatible bucket with the cargo feature `s3`
//! (`store/bucket`), because it brings an asynchronous runtime that the simulator does not need otherwise.

#[cfg(feature = "s3")]
mod bucket;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::SimulationError;

/// How an address of a bucket begins.
const S3: &str = "s3://";

/// A folder or a bucket.
#[derive(Debug)]
pub enum Store {
    /// A folder, perhaps on a network file system.
    Folder(PathBuf),
    /// A bucket, and a prefix in it.
    #[cfg(feature = "s3")]
    Bucket(bucket::Bucket),
}

/// What became of an object that was to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It is there now, whole.
    Created,
    /// Another one was there before, and still is.
    Existed,
}

impl Store {
    /// The store at `address`: `s3://bucket/prefix`, with keys and endpoint in the usual `AWS_…` variables, or a
    /// folder.
    ///
    /// # Errors
    /// [`SimulationError::Store`] if this build has no S3, or the address is none.
    pub fn open(address: &str) -> Result<Self, SimulationError> {
        let Some(_rest) = address.strip_prefix(S3) else {
            return Ok(Self::Folder(PathBuf::from(address)));
        };
        #[cfg(feature = "s3")]
        return bucket::Bucket::open(_rest).map(Self::Bucket);
        #[cfg(not(feature = "s3"))]
        Err(SimulationError::Store {
            key: address.to_owned(),
            reason: "this build knows folders only; build with --features s3".to_owned(),
        })
    }

    /// Puts `bytes` under `key`, unless something is there. Whoever else does so at the same time: one is
    /// first, and nobody ever sees a part.
    ///
    /// # Errors
    /// [`SimulationError::File`], [`SimulationError::Store`].
    pub fn create(&self, key: &str, bytes: &[u8]) -> Result<Creation, SimulationError> {
        match self {
            Self::Folder(dir) => create_file(&dir.join(key), bytes),
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.create(key, bytes),
        }
    }

    /// What is under `key`; `None` if nothing is.
    ///
    /// # Errors
    /// As [`create`](Self::create)'s.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, SimulationError> {
        match self {
            Self::Folder(dir) => {
                let path = dir.join(key);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(SimulationError::file("read", &path)(error)),
                }
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.get(key),
        }
    }

    /// All keys below `prefix`, in order; none if there is nothing of that name.
    ///
    /// # Errors
    /// As [`create`](Self::create)'s.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>, SimulationError> {
        let mut keys = Vec::new();
        match self {
            Self::Folder(dir) => list_files(&dir.join(prefix), prefix, &mut keys)?,
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => keys = bucket.list(prefix)?,
        }
        keys.sort();
        Ok(keys)
    }

    /// Takes away what is under `key`; only what no one refers to.
    ///
    /// # Errors
    /// As [`create`](Self::create)'s.
    pub fn remove(&self, key: &str) -> Result<(), SimulationError> {
        match self {
            Self::Folder(dir) => {
                let path = dir.join(key);
                fs::remove_file(&path).map_err(SimulationError::file("remove", &path))
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.remove(key),
        }
    }
}

fn create_file(path: &Path, bytes: &[u8]) -> Result<Creation, SimulationError> {
    let dir = path.parent().expect("a key has a name");
    fs::create_dir_all(dir).map_err(SimulationError::file("make the folder", dir))?;
    if path.exists() {
        return Ok(Creation::Existed);
    }
    let write = || {
        let mut builder = tempfile::Builder::new();
        // As any other file, so that colleagues on the cluster can read it.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        // By a link or a renaming that fails if the name is taken.
        match file.persist_noclobber(path) {
            Ok(_) => Ok(Creation::Created),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(Creation::Existed),
            Err(error) => Err(error.error),
        }
    };
    write().map_err(SimulationError::file("write", path))
}

/// Files below `dir`, whose key is `prefix`; what a killed writer left begins with a dot.
fn list_files(dir: &Path, prefix: &str, keys: &mut Vec<String>) -> Result<(), SimulationError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SimulationError::file("read the folder", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(SimulationError::file("read the folder", dir))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let key = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.path().is_dir() {
            list_files(&entry.path(), &key, keys)?;
        } else {
            keys.push(key);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_create_one_object_one_is_first_and_all_see_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().to_str().unwrap();
        let n_first: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8u8)
                .map(|i| {
                    scope.spawn(move || {
                        let store = Store::open(address).unwrap();
                        (0..50)
                            .filter(|n| {
                                let key = format!("a/{n}");
                                let bytes = vec![i; 10_000];
                                let created = store.create(&key, &bytes).unwrap();
                                let seen = store.get(&key).unwrap().unwrap();
                                assert!(seen.len() == 10_000 && seen.iter().all(|b| *b == seen[0]));
                                assert!(created == Creation::Existed || seen == bytes);
                                created == Creation::Created
                            })
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(n_first, 50, "each object has one creator");
        assert_eq!(Store::open(address).unwrap().list("a").unwrap().len(), 50, "and no leftovers");
    }

    #[test]
    fn a_store_lists_what_it_holds_and_forgets_what_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(store.list("results").unwrap(), Vec::<String>::new());
        for key in ["results/b/2", "results/a", "other"] {
            assert_eq!(store.create(key, b"x").unwrap(), Creation::Created);
        }
        fs::write(dir.path().join("results/.tmp123"), b"a killed writer's").unwrap();
        assert_eq!(store.list("results").unwrap(), ["results/a", "results/b/2"]);
        store.remove("results/a").unwrap();
        assert_eq!(store.get("results/a").unwrap(), None);
        assert!(store.remove("results/a").is_err());
    }

    #[cfg(not(feature = "s3"))]
    #[test]
    fn a_build_without_s3_says_so() {
        let error = Store::open("s3://bucket/prefix").unwrap_err().to_string();
        assert!(error.contains("--features s3"), "{error}");
    }
}
