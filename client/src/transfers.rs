//! What takes long on one connection: an upload and a download, beside the assignments that arrive.
//!
//! Both are futures of the node's own task, not tasks of their own: they end with the connection, and what is
//! no longer wanted is dropped in the middle.  What has arrived by then stays staged on either side.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use comity_federation::{Contribution, RunId, SignedReceipt, Task};

use crate::link::{CallError, Link};

/// A transfer under way.
type Transfer<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

/// How long an upload may take to end before news of its run are looked at. The coordinator answers an update in
/// the moment in which it takes or refuses it; what takes longer is still on its way.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// A connection and its transfers.  Without a connection nothing is sent: whatever is owed is found again
/// when there is one.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) link: Option<Link>,
    /// Updates that wait for the one under way.
    waiting: VecDeque<Outgoing>,
    upload: Option<(Outgoing, Transfer<Option<SignedReceipt>>)>,
    download: Option<(Task, Transfer<()>)>,
}

/// An update that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) run: RunId,
    pub(crate) contribution: Contribution,
}

/// A transfer that came to its end.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is looked at once")]
pub(crate) enum Ended {
    /// With the receipt, unless the coordinator gave none.
    Upload(Outgoing, Result<Option<SignedReceipt>, CallError>),
    Download(Task, Result<(), CallError>),
}

impl Wire {
    pub(crate) fn new(link: Link) -> Self {
        Self { link: Some(link), ..Self::default() }
    }

    /// Notes an update that is to be sent; once, however often it is asked for.
    pub(crate) fn submit(&mut self, update: Outgoing) {
        let under_way = self.upload.as_ref().is_some_and(|(current, _)| *current == update);
        if !under_way && !self.waiting.contains(&update) {
            self.waiting.push_back(update);
        }
    }

    /// The next update to be sent, if none is under way.
    pub(crate) fn next_upload(&mut self) -> Option<Outgoing> {
        if self.upload.is_some() { None } else { self.waiting.pop_front() }
    }

    pub(crate) fn start_upload(
        &mut self,
        update: Outgoing,
        transfer: impl Future<Output = Result<Option<SignedReceipt>, CallError>> + Send + 'static,
    ) {
        self.upload = Some((update, Box::pin(transfer)));
    }

    /// Whether a model is on its way.
    pub(crate) fn downloads(&self) -> bool {
        self.download.is_some()
    }

    /// Whether the model of `task` is on its way.
    pub(crate) fn downloads_for(&self, task: &Task) -> bool {
        self.download.as_ref().is_some_and(|(current, _)| current.is_same_work(task))
    }

    pub(crate) fn start_download(
        &mut self,
        task: Task,
        transfer: impl Future<Output = Result<(), CallError>> + Send + 'static,
    ) {
        self.download = Some((task, Box::pin(transfer)));
    }

    /// Gives up what is not wanted any more, in the middle of its bytes.
    pub(crate) fn keep(
        &mut self,
        update_is_wanted: impl Fn(&Outgoing) -> bool,
        model_is_wanted: impl Fn(&Task) -> bool,
    ) {
        self.waiting.retain(&update_is_wanted);
        self.upload.take_if(|(update, _)| !update_is_wanted(update));
        self.download.take_if(|(task, _)| !model_is_wanted(task));
    }

    /// The end of the upload for `run`, if one is under way and ends at once: its answer, a receipt or the reason
    /// of a refusal, must not be lost to the news that it caused, which can be here before it.
    pub(crate) async fn answered(&mut self, run: &str) -> Option<Ended> {
        let of_run = self.upload.as_ref().is_some_and(|(update, _)| update.run.as_str() == run);
        if !of_run {
            return None;
        }
        let answer = tokio::time::timeout(ANSWER_PATIENCE, end_of(&mut self.upload)).await;
        answer.ok().map(|(update, outcome)| Ended::Upload(update, outcome))
    }

    /// The next transfer that ends; never, if there is none.
    pub(crate) async fn ended(&mut self) -> Ended {
        let Self { upload, download, .. } = self;
        tokio::select! {
            (update, outcome) = end_of(upload) => Ended::Upload(update, outcome),
            (task, outcome) = end_of(download) => Ended::Download(task, outcome),
        }
    }
}

async fn end_of<W, T>(current: &mut Option<(W, Transfer<T>)>) -> (W, Result<T, CallError>) {
    let Some((_, transfer)) = current else { return std::future::pending().await };
    let outcome = transfer.await;
    let (what, _) = current.take().expect("it was there above");
    (what, outcome)
}
