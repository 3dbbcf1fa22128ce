//! An S3-compatible bucket, by the `object_store` crate.

use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::runtime::{Builder, Runtime};

use super::Creation;
use crate::SimulationError;

/// A bucket and a prefix in it; each call waits for its answer.
#[derive(Debug)]
pub struct Bucket {
    store: object_store::aws::AmazonS3,
    prefix: String,
    runtime: Runtime,
}

impl Bucket {
    /// The bucket of `address`, which is `bucket/prefix`.
    pub(super) fn open(address: &str) -> Result<Self, SimulationError> {
        let failed = |reason: String| SimulationError::Store { key: address.to_owned(), reason };
        let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        Ok(Self { store, prefix: prefix.trim_matches('/').to_owned(), runtime })
    }

    fn path(&self, key: &str) -> Path {
        Path::from_iter(
            self.prefix.split('/').chain(key.split('/')).filter(|part| !part.is_empty()),
        )
    }

    pub(super) fn create(&self, key: &str, bytes: &[u8]) -> Result<Creation, SimulationError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = self.path(key);
        let put = self.store.put_opts(&path, bytes.to_vec().into(), options);
        match self.runtime.block_on(put) {
            Ok(_) => Ok(Creation::Created),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Creation::Existed),
            Err(error) => Err(failed(key, &error)),
        }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, SimulationError> {
        let path = self.path(key);
        let got = self.runtime.block_on(async { self.store.get(&path).await?.bytes().await });
        match got {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(key, &error)),
        }
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Vec<String>, SimulationError> {
        let path = self.path(prefix);
        let listed = self.store.list(Some(&path)).map_ok(|object| object.location.to_string());
        let found: Vec<String> =
            self.runtime.block_on(listed.try_collect()).map_err(|error| failed(prefix, &error))?;
        // A prefix of names is not a folder of that name, and the bucket's own prefix is not told.
        let own = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        Ok(found.into_iter().map(|location| location[own..].to_owned()).collect())
    }

    pub(super) fn remove(&self, key: &str) -> Result<(), SimulationError> {
        let path = self.path(key);
        let removed = self.runtime.block_on(self.store.delete(&path));
        removed.map_err(|error| failed(key, &error))
    }
}

fn failed(key: &str, error: &Error) -> SimulationError {
    SimulationError::Store { key: key.to_owned(), reason: error.to_string() }
}
