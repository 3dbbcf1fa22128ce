//! A coordinator that keeps to no rule: it has the coordinator's certificate and says to clients whatever a test
//! wants, and notes what they answer.

use std::fs;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use comity_certs::{Document, Signer, server_config};
use comity_federation::{ClientId, Order, Plan, RunId, Time};
use comity_proto::limits::HANDSHAKE_TIMEOUT;
use comity_proto::transport::{incoming, server_builder};
use comity_proto::v1::federation_server::{Federation, FederationServer};
use comity_proto::v1::{self, assignment::What};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, oneshot};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{PATIENCE, Site, write};

/// What a client answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It agreed to the plan of this run.
    CheckedIn(String),
    /// It declined this run, and why.
    Declined(String, String),
    /// It will not train a round of this run, and why.
    Withdrew(String, String),
    /// It asked for a model.
    Fetched(String),
}

/// What is said to every client that follows, and what they said.
#[derive(Clone)]
struct Service {
    said: Arc<Mutex<Vec<v1::Assignment>>>,
    news: broadcast::Sender<v1::Assignment>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

/// The coordinator; it ends when this is dropped.
pub(super) struct Rogue {
    pub(super) url: String,
    service: Service,
    _stop: oneshot::Sender<()>,
}

impl Rogue {
    /// Serves with the certificate of `site`'s coordinator, on a port of its own.
    pub(super) fn serve(site: &Site) -> Self {
        let certs = site.deployment.coordinator_dir().join("certs");
        let pem = |name: &str| fs::read_to_string(certs.join(name)).unwrap();
        let tls = server_config(&pem("coordinator.pem"), &pem("coordinator.key"), &pem("root.pem"));
        let tls = Arc::new(ArcSwap::from(tls.unwrap()));
        let (news, _) = broadcast::channel(64);
        let service = Service { said: Arc::default(), news, answers: Arc::default() };
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, listening) = std::sync::mpsc::channel();
        let serving = service.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                address.send(listener.local_addr().unwrap()).unwrap();
                let connections = incoming(
                    listener,
                    tls,
                    HANDSHAKE_TIMEOUT,
                    |_| String::new(),
                    ToString::to_string,
                );
                let served = server_builder()
                    .add_service(FederationServer::new(serving))
                    .serve_with_incoming(connections);
                tokio::select! { _ = served => {}, _ = stopped => {} }
            });
        });
        let url = format!("https://{}", listening.recv().unwrap());
        Self { url, service, _stop: stop }
    }

    /// Has `client`, when it is started, believe that this is the coordinator.
    pub(super) fn beguile(&self, site: &Site, client: &ClientId) {
        let config = site.deployment.client_dir(client).join("client.toml");
        let text = fs::read_to_string(&config).unwrap();
        write(&config, &text.replace(&site.deployment.url().unwrap(), &self.url));
    }

    /// Says this to every client that follows, or will.
    pub(super) fn say(&self, run: &RunId, what: What) {
        let assignment = v1::Assignment { run_id: run.to_string(), what: Some(what) };
        // Under the lock, so that whoever begins to follow hears it once.
        let mut said = self.service.said.lock().unwrap();
        said.push(assignment.clone());
        let _ = self.service.news.send(assignment);
    }

    /// Waits until a client has answered `n` times, and returns the last of these answers.
    pub(super) fn answer(&self, n: usize) -> Answer {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.service.answers.lock().unwrap().get(n - 1) {
                return answer.clone();
            }
            assert!(Instant::now() < end, "no client answers");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the `n`th answer, which has to decline `run`, and returns the reason.
    pub(super) fn refusal(&self, n: usize, run: &RunId) -> String {
        match self.answer(n) {
            Answer::Declined(of, reason) if of == run.as_str() => reason,
            other => panic!("{run} was not declined: {other:?}"),
        }
    }
}

/// An operator's order at `issued`, and what is offered under it.
pub(super) fn offer(plan: &Plan, signer: &Signer, issued: Time) -> (RunId, v1::Offer) {
    let order = Order::new(plan, "test", issued, "operator");
    let signature = signer.sign(Document::Order, &order.to_json());
    let offer = v1::Offer {
        plan_json: plan.to_json().into(),
        plan_digest: plan.digest().0.to_vec().into(),
        order_json: order.to_json().into(),
        order_signature: Some((&signature).into()),
        ..Default::default()
    };
    (order.run, offer)
}

type Sending<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Federation for Service {
    async fn hello(&self, _: Request<v1::HelloRequest>) -> Reply<v1::HelloReply> {
        Ok(Response::new(v1::HelloReply {
            protocol: comity_proto::PROTOCOL,
            software: "rogue".to_owned(),
            federation: "test".to_owned(),
            ..Default::default()
        }))
    }

    type FollowStream = Sending<v1::Assignment>;

    async fn follow(&self, _: Request<v1::FollowRequest>) -> Reply<Self::FollowStream> {
        let (said, mut news) = {
            let said = self.said.lock().unwrap();
            (said.clone(), self.news.subscribe())
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            for assignment in said {
                if sender.send(Ok(assignment)).await.is_err() {
                    return;
                }
            }
            while let Ok(assignment) = news.recv().await {
                if sender.send(Ok(assignment)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn check_in(&self, request: Request<v1::CheckInRequest>) -> Reply<v1::CheckInReply> {
        self.note(Answer::CheckedIn(request.into_inner().run_id));
        Ok(Response::new(v1::CheckInReply {}))
    }

    async fn decline(&self, request: Request<v1::DeclineRequest>) -> Reply<v1::DeclineReply> {
        let v1::DeclineRequest { run_id, reason } = request.into_inner();
        self.note(Answer::Declined(run_id, reason));
        Ok(Response::new(v1::DeclineReply {}))
    }

    async fn withdraw(&self, request: Request<v1::WithdrawRequest>) -> Reply<v1::WithdrawReply> {
        let v1::WithdrawRequest { run_id, reason, .. } = request.into_inner();
        self.note(Answer::Withdrew(run_id, reason));
        Ok(Response::new(v1::WithdrawReply {}))
    }

    type FetchModelStream = Sending<v1::Chunk>;

    async fn fetch_model(
        &self,
        request: Request<v1::FetchModelRequest>,
    ) -> Reply<Self::FetchModelStream> {
        self.note(Answer::Fetched(request.into_inner().run_id));
        Err(Status::not_found("there is none"))
    }

    async fn upload_offset(&self, _: Request<v1::UpdateHeader>) -> Reply<v1::UploadOffsetReply> {
        Ok(Response::new(v1::UploadOffsetReply::default()))
    }

    async fn submit_update(&self, _: Request<Streaming<v1::UpdatePart>>) -> Reply<v1::SubmitReply> {
        Ok(Response::new(v1::SubmitReply::default()))
    }

    async fn countersign(&self, _: Request<v1::CountersignRequest>) -> Reply<v1::CountersignReply> {
        Ok(Response::new(v1::CountersignReply {}))
    }
}

impl Service {
    fn note(&self, answer: Answer) {
        self.answers.lock().unwrap().push(answer);
    }
}
