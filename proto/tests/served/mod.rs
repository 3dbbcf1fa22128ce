//! What the tests of connections share: a server over a real socket, and members that knock at it.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use comity_certs::{
    Authority, CertificateSummary, Identity, Issued, Role, Seen, client_config, explain,
};
use comity_proto::limits::MESSAGE_BYTES_MAX;
use comity_proto::transport::{ConnectError, PeerCertificates, connect, incoming, server_builder};
use comity_proto::v1::federation_server::{Federation, FederationServer};
use comity_proto::{PROTOCOL, v1};
use time::OffsetDateTime;
use tokio_stream::Stream;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status, Streaming};

/// Says hello, and sends a plan that is nothing but zeros and too long.
struct Greeter;

type Sending<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Federation for Greeter {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let peer = request.extensions().get::<PeerCertificates>().expect("mTLS only");
        // As the coordinator does.
        let identity = Identity::of_chain(&peer.chain)
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        Ok(Response::new(v1::HelloReply {
            protocol: PROTOCOL,
            software: "test".to_owned(),
            federation: identity.federation,
            you: identity.role.to_string(),
            now_ms: 0,
        }))
    }
    type FollowStream = Sending<v1::Assignment>;
    async fn follow(
        &self,
        _: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let plan_json = vec![0; 16 * MESSAGE_BYTES_MAX].into();
        let offer = v1::Offer { plan_json, ..v1::Offer::default() };
        let what = Some(v1::assignment::What::Offer(offer));
        let bomb = v1::Assignment { run_id: "bomb-1".to_owned(), what };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(bomb)))))
    }
    async fn check_in(
        &self,
        _: Request<v1::CheckInRequest>,
    ) -> Result<Response<v1::CheckInReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn decline(
        &self,
        _: Request<v1::DeclineRequest>,
    ) -> Result<Response<v1::DeclineReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn withdraw(
        &self,
        _: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    type FetchModelStream = Sending<v1::Chunk>;
    async fn fetch_model(
        &self,
        _: Request<v1::FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn upload_offset(
        &self,
        _: Request<v1::UpdateHeader>,
    ) -> Result<Response<v1::UploadOffsetReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn countersign(
        &self,
        _: Request<v1::CountersignRequest>,
    ) -> Result<Response<v1::CountersignReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn submit_update(
        &self,
        parts: Request<Streaming<v1::UpdatePart>>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let mut parts = parts.into_inner();
        while parts.message().await?.is_some() {}
        Ok(Response::new(v1::SubmitReply::default()))
    }
}

/// What the server's log says of handshakes that failed, oldest first.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// Serves on a free port and returns `https://…`.
pub(crate) async fn serve_with(
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    handshake_timeout: Duration,
    log: Log,
) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let who = |chain: &[Vec<u8>]| {
        Identity::of_chain(chain).map(|identity| identity.to_string()).unwrap_or_default()
    };
    let why = move |error: &rustls::Error| {
        let said = explain(error, &Seen::ByServer);
        log.lock().unwrap().push(said.clone());
        said
    };
    let connections = incoming(listener, tls, handshake_timeout, who, why);
    let greeter = FederationServer::new(Greeter).send_compressed(CompressionEncoding::Zstd);
    let server = server_builder().add_service(greeter);
    tokio::spawn(server.serve_with_incoming(connections));
    format!("https://{address}")
}

pub(crate) fn client_role() -> Role {
    Role::Client("KR/seoul-lab".parse().unwrap())
}

pub(crate) fn issued(authority: &Authority) -> Issued {
    authority.issue(&client_role(), 1, OffsetDateTime::now_utc()).unwrap()
}

pub(crate) fn tls(issued: &Issued, root: &str) -> Arc<rustls::ClientConfig> {
    client_config(&issued.certificate_pem, &issued.key_pem, root).unwrap()
}

/// The sentence that the refused client's user reads at `now`.
pub(crate) async fn refusal(
    url: &str,
    tls: Arc<rustls::ClientConfig>,
    own: Option<&Issued>,
    now: OffsetDateTime,
) -> String {
    let own = own.map(|own| CertificateSummary::of_pem(&own.certificate_pem).unwrap());
    let server = url.strip_prefix("https://").unwrap();
    match connect(url, tls).await {
        Err(ConnectError::Refused { source, .. }) => {
            explain(&source, &Seen::ByClient { own: own.as_ref(), server, now })
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub(crate) fn without_certificate(root_pem: &str) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
