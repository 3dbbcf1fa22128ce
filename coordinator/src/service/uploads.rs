//! Uploads under way: where each goes on, one at a time of each client, and no more at once than the limit.
//!
//! The bytes of an update are staged under a name that this module makes of run, client, round and the first
//! bytes of the digest, so that a lost connection or a restart costs the chunks that were under way, and
//! another file begins anew.  Whoever asks or sends last has the turn: an upload of the same client that hangs
//! on a dead connection is ended, and what it brought is in its file before anybody looks how much that is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use comity_federation::{ClientId, Contribution, RunId};
use comity_journal::{BlobStore, BlobWriter};
use comity_proto::Taking;
use comity_proto::limits::{QUEUED_CHUNKS_MAX, UPLOADS_MAX};
use comity_proto::v1::Chunk;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tonic::Status;

use super::blocking;

/// All uploads of a coordinator; clones share them.
#[derive(Clone)]
pub(crate) struct Uploads {
    blobs: Arc<BlobStore>,
    places: Arc<Semaphore>,
    /// One for each client that ever sent an update: as many as there are members.
    slots: Arc<Mutex<BTreeMap<ClientId, Arc<Slot>>>>,
}

/// A client's place at the door.
#[derive(Default)]
struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Number of the last who came.
    last: watch::Sender<u64>,
}

/// The right to write a client's staged updates, until another upload of the same client wants it.
pub(super) struct Turn {
    guard: OwnedMutexGuard<()>,
    rival: Rival,
}

/// Waits for another upload of the same client.
struct Rival {
    mine: u64,
    last: watch::Receiver<u64>,
}

impl Rival {
    async fn came(&mut self) -> Status {
        let mine = self.mine;
        // The sender lives as long as the coordinator.
        let _ = self.last.wait_for(|last| *last > mine).await;
        Status::aborted("another upload of this client has taken over; ask again where to go on")
    }
}

impl Uploads {
    pub(crate) fn new(blobs: Arc<BlobStore>) -> Self {
        let places = Arc::new(Semaphore::new(UPLOADS_MAX));
        Self { blobs, places, slots: Arc::default() }
    }

    /// Takes the turn of `client`, and ends its upload that has it.
    pub(super) async fn turn(&self, client: &ClientId) -> Result<Turn, Status> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(client.clone()).or_default())
        };
        let mut mine = 0;
        slot.last.send_modify(|last| {
            *last += 1;
            mine = *last;
        });
        let mut rival = Rival { mine, last: slot.last.subscribe() };
        tokio::select! {
            guard = Arc::clone(&slot.turn).lock_owned() => Ok(Turn { guard, rival }),
            status = rival.came() => Err(status),
        }
    }

    /// Bytes of the update that are staged; forgets what the client staged before of the same run.
    pub(super) async fn offset(
        &self,
        _turn: &Turn,
        run: &RunId,
        client: &ClientId,
        contribution: &Contribution,
    ) -> Result<u64, Status> {
        let blobs = Arc::clone(&self.blobs);
        let (all, name) = names(run, client, contribution);
        let total = contribution.delta_bytes();
        blocking(move || {
            let mut offset = 0;
            for (staged, bytes) in blobs.staged()? {
                if staged == name && bytes <= total {
                    offset = bytes;
                } else if staged.starts_with(&all) {
                    blobs.discard(&staged)?;
                }
            }
            Ok(offset)
        })
        .await
    }

    /// Ends the upload of `client` that is under way, and forgets whatever it has staged.
    pub(super) async fn forget(&self, client: &ClientId) -> Result<(), Status> {
        let turn = self.turn(client).await?;
        let blobs = Arc::clone(&self.blobs);
        let of_client = format!(".{}.{}.", client.country().as_str(), client.institution());
        blocking(move || {
            for (staged, _) in blobs.staged()? {
                let run = run_of_upload(&staged).unwrap_or_default();
                let rest = staged.strip_prefix("update.").and_then(|s| s.strip_prefix(run));
                if rest.is_some_and(|rest| rest.starts_with(&of_client)) {
                    blobs.discard(&staged)?;
                }
            }
            Ok(())
        })
        .await?;
        drop(turn);
        Ok(())
    }

    /// Opens the update for bytes from `from` on: 0 begins anew, `None` takes what is staged as all that
    /// comes.
    pub(super) async fn open(
        &self,
        turn: Turn,
        run: &RunId,
        client: &ClientId,
        contribution: &Contribution,
        from: Option<u64>,
        taking: Taking,
    ) -> Result<Upload, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{UPLOADS_MAX} updates are on their way to the coordinator, as many as it takes at \
                 once; try again in a moment"
            ))
        })?;
        let staged = self.offset(&turn, run, client, contribution).await?;
        if from.is_some_and(|from| from != 0 && from != staged) {
            return Err(Status::aborted(format!(
                "{staged} bytes of this update are here; go on from there or from 0"
            )));
        }
        let blobs = Arc::clone(&self.blobs);
        let (_, name) = names(run, client, contribution);
        let Turn { guard, rival } = turn;
        // The turn goes along, so that it outlives the writer wherever this is given up.
        let open = blocking(move || {
            if from == Some(0) {
                blobs.discard(&name)?;
            }
            Ok(Open { writer: blobs.resume(&name)?, _place: place, _turn: guard })
        })
        .await?;
        let offset = open.writer.len();
        let (chunks, arriving) = mpsc::channel(QUEUED_CHUNKS_MAX);
        Ok(Upload { offset, chunks, stored: tokio::spawn(store(open, arriving, taking)), rival })
    }
}

/// What all staged names of a run and client begin with, and the one of the update.
fn names(run: &RunId, client: &ClientId, contribution: &Contribution) -> (String, String) {
    let all = format!("update.{run}.{}.{}.", client.country().as_str(), client.institution());
    let mut name = format!("{all}{}.", contribution.round);
    for byte in &contribution.update.0[..8] {
        let _ = write!(name, "{byte:02x}");
    }
    (all, name)
}

/// The run of a staged update, by its name.
pub(crate) fn run_of_upload(name: &str) -> Option<&str> {
    name.strip_prefix("update.")?.split('.').next()
}

/// A staged update and the right to write it; the writer is dropped first.
struct Open {
    writer: BlobWriter,
    _place: OwnedSemaphorePermit,
    _turn: OwnedMutexGuard<()>,
}

/// Writes what arrives, beside the network and on a thread of the disk's only while there is something to
/// write: a sender that hangs holds no thread.
async fn store(
    mut open: Open,
    mut arriving: mpsc::Receiver<Chunk>,
    taking: Taking,
) -> Result<Open, Status> {
    let mut batch = Vec::new();
    while arriving.recv_many(&mut batch, QUEUED_CHUNKS_MAX).await > 0 {
        let sizes: Vec<usize> = batch.iter().map(|chunk: &Chunk| chunk.data.len()).collect();
        (open, batch) = blocking(move || {
            for chunk in batch.drain(..) {
                open.writer.write(&chunk.data)?;
            }
            Ok((open, batch))
        })
        .await?;
        sizes.into_iter().for_each(|n_bytes| taking.took(n_bytes));
    }
    Ok(open)
}

/// An update that is arriving.  Dropped before its end, what has arrived stays staged.
pub(super) struct Upload {
    /// First byte that was not there yet when it was opened.
    pub(super) offset: u64,
    chunks: mpsc::Sender<Chunk>,
    stored: JoinHandle<Result<Open, Status>>,
    rival: Rival,
}

impl Upload {
    /// Hands on the next chunk, which was found to be the next; returns before it is written.
    pub(super) async fn write(&mut self, chunk: Chunk) -> Result<(), Status> {
        if self.chunks.send(chunk).await.is_ok() {
            return Ok(());
        }
        match joined(&mut self.stored).await {
            Err(status) => Err(status),
            Ok(_) => Err(Status::internal("the update was closed before its end")),
        }
    }

    /// Returns when another upload of the same client wants the turn.
    pub(super) async fn taken_over(&mut self) -> Status {
        self.rival.came().await
    }

    /// Stores the update, if its digest is `expected`; otherwise nothing of it stays.
    pub(super) async fn finish(self, expected: [u8; 32]) -> Result<(), Status> {
        let Self { chunks, mut stored, .. } = self;
        drop(chunks);
        let open = joined(&mut stored).await?;
        blocking(move || {
            let Open { writer, _place, _turn } = open;
            writer.finish_expecting(expected)
        })
        .await
    }
}

async fn joined(stored: &mut JoinHandle<Result<Open, Status>>) -> Result<Open, Status> {
    stored.await.map_err(|e| Status::internal(e.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use comity_federation::{ModelDigest, PlanDigest, UpdateDigest};

    fn chunk(data: &[u8]) -> Chunk {
        Chunk { offset: 0, data: data.to_vec().into() }
    }

    struct Site {
        uploads: Uploads,
        run: RunId,
        client: ClientId,
        bytes: Vec<u8>,
        _dir: tempfile::TempDir,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let blobs = Arc::new(BlobStore::open(dir.path()).unwrap());
            Self {
                uploads: Uploads::new(blobs),
                run: "sample-1".parse().unwrap(),
                client: "KR/a".parse().unwrap(),
                bytes: (0..4000).map(|i| i as u8).collect(),
                _dir: dir,
            }
        }

        fn contribution(&self) -> Contribution {
            Contribution {
                round: 2,
                plan: PlanDigest([1; 32]),
                base: ModelDigest([2; 32]),
                update: UpdateDigest(*blake3::hash(&self.bytes).as_bytes()),
                n_parameters: self.bytes.len() as u64 / 4,
                encoding: comity_federation::UpdateEncoding::Int32,
                n_correct: None,
                loss_sum: None,
            }
        }

        async fn open(&self, from: Option<u64>) -> Result<Upload, Status> {
            let turn = self.uploads.turn(&self.client).await?;
            let contribution = self.contribution();
            let taking = Taking::default();
            self.uploads.open(turn, &self.run, &self.client, &contribution, from, taking).await
        }

        async fn offset(&self) -> u64 {
            let turn = self.uploads.turn(&self.client).await.unwrap();
            let uploads = &self.uploads;
            uploads.offset(&turn, &self.run, &self.client, &self.contribution()).await.unwrap()
        }

        async fn write(&self, upload: &mut Upload, range: std::ops::Range<usize>) {
            upload.write(chunk(&self.bytes[range])).await.unwrap();
        }

        fn staged(&self) -> Vec<(String, u64)> {
            self.uploads.blobs.staged().unwrap()
        }
    }

    #[test]
    fn the_name_of_a_staged_update_tells_its_run() {
        let site = Site::new();
        let (_, name) = names(&site.run, &site.client, &site.contribution());
        assert_eq!(run_of_upload(&name), Some(site.run.as_str()));
        assert_eq!(run_of_upload("something"), None);
    }

    #[tokio::test]
    async fn an_update_goes_on_where_a_dropped_one_stopped() {
        let site = Site::new();
        let mut first = site.open(Some(0)).await.unwrap();
        site.write(&mut first, 0..1000).await;
        site.write(&mut first, 1000..1500).await;
        drop(first);
        // The turn comes when what had been handed over is written.
        assert_eq!(site.offset().await, 1500);
        assert_eq!(site.open(Some(1400)).await.err().unwrap().code(), tonic::Code::Aborted);
        let mut second = site.open(Some(1500)).await.unwrap();
        assert_eq!(second.offset, 1500);
        site.write(&mut second, 1500..4000).await;
        second.finish(site.contribution().update.0).await.unwrap();
        assert_eq!(site.uploads.blobs.read_all(&site.contribution().update.0).unwrap(), site.bytes);
        assert_eq!(site.staged(), []);
    }

    // BAD_INPUTS 55
    #[tokio::test]
    async fn of_an_update_with_another_digest_nothing_stays_and_it_can_be_sent_again() {
        let site = Site::new();
        let mut wrong = site.open(Some(0)).await.unwrap();
        wrong.write(chunk(&[9; 4000])).await.unwrap();
        let refused = wrong.finish(site.contribution().update.0).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DataLoss);
        assert_eq!((site.offset().await, site.staged()), (0, vec![]));
        let mut right = site.open(Some(0)).await.unwrap();
        site.write(&mut right, 0..4000).await;
        right.finish(site.contribution().update.0).await.unwrap();
    }

    // BAD_INPUTS 66
    #[tokio::test]
    async fn another_file_begins_anew_and_what_was_staged_before_is_forgotten() {
        let mut site = Site::new();
        let mut first = site.open(Some(0)).await.unwrap();
        site.write(&mut first, 0..1000).await;
        drop(first);
        assert_eq!(site.offset().await, 1000);
        site.bytes.reverse();
        assert_eq!((site.offset().await, site.staged()), (0, vec![]));
        // And a longer rest than the update is no rest of it.
        let mut long = site.open(Some(0)).await.unwrap();
        site.write(&mut long, 0..4000).await;
        long.write(chunk(b"more")).await.unwrap();
        drop(long);
        assert_eq!((site.offset().await, site.staged()), (0, vec![]));
    }

    #[tokio::test]
    async fn the_last_who_comes_has_the_turn() {
        let site = Site::new();
        let mut hanging = site.open(Some(0)).await.unwrap();
        site.write(&mut hanging, 0..1000).await;
        let (told, second) = tokio::join!(
            async {
                let told = hanging.taken_over().await;
                drop(hanging);
                told
            },
            site.open(Some(1000))
        );
        assert_eq!(told.code(), tonic::Code::Aborted);
        assert_eq!(second.unwrap().offset, 1000);
    }

    #[tokio::test]
    async fn no_more_updates_arrive_at_once_than_the_limit_says() {
        let mut site = Site::new();
        let mut open = Vec::new();
        for i in 0..UPLOADS_MAX {
            site.client = format!("KR/a{i}").parse().unwrap();
            open.push(site.open(Some(0)).await.unwrap());
        }
        site.client = "KR/late".parse().unwrap();
        let refused = site.open(Some(0)).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("try again"), "{refused}");
        // Who is among them may begin anew.
        let mut mine = open.remove(0);
        site.client = "KR/a0".parse().unwrap();
        let again = tokio::spawn({
            let uploads = site.uploads.clone();
            let (run, client, contribution) =
                (site.run.clone(), site.client.clone(), site.contribution());
            async move {
                let turn = uploads.turn(&client).await?;
                uploads.open(turn, &run, &client, &contribution, Some(0), Taking::default()).await
            }
        });
        mine.taken_over().await;
        drop(mine);
        assert!(again.await.unwrap().is_ok());
    }
}
