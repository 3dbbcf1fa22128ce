//! The first bytes of a connection, from either side, before anybody is known.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use comity_certs::{Authority, Role, client_config, server_config};
use comity_proto::transport::{Dial, Dialled, Duplex, Listen, connect_over, incoming};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::Runtime;

/// How long an answer to bytes that are all there may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A TLS record that refuses.
const ALERT_BYTES: usize = 7;

struct World {
    runtime: Runtime,
    server: Arc<ArcSwap<rustls::ServerConfig>>,
    client: Arc<rustls::ClientConfig>,
    _dir: TempDir,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let now = OffsetDateTime::now_utc();
        let names = ["127.0.0.1".to_owned()];
        let authority = Authority::init(dir.path(), "fuzz", &names, now).expect("an authority");
        let server = authority
            .issue_server(&names, now, now + Duration::from_secs(86_400))
            .expect("a certificate");
        let client = Role::Client("KR/a".parse().expect("a name"));
        let client = authority.issue(&client, 30, now).expect("a certificate");
        let root = authority.root_pem();
        let server = server_config(&server.certificate_pem, &server.key_pem, root);
        let client = client_config(&client.certificate_pem, &client.key_pem, root);
        World {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
            server: Arc::new(ArcSwap::from(server.expect("a configuration"))),
            client: client.expect("a configuration"),
            _dir: dir,
        }
    })
}

/// One connection comes in, and no other.
struct Once(Option<DuplexStream>);

impl Listen for Once {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
        match self.0.take() {
            Some(stream) => Ok((stream, (Ipv4Addr::LOCALHOST, 1).into())),
            None => pending().await,
        }
    }
}

/// One connection goes out, and no other.
struct OneCall(Mutex<Option<DuplexStream>>);

impl Dial for OneCall {
    fn dial<'a>(&'a self, _: &'a str) -> Dialled<'a> {
        Box::pin(async move {
            let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = stream.ok_or(io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

/// Bytes that a stranger sends to the coordinator, and that a stranger answers to a client.
///
/// # Panics
/// If a connection comes about, or nobody answers.
pub fn first_bytes(bytes: &[u8]) -> bool {
    let World { runtime, server, client, .. } = world();
    runtime.block_on(async {
        let (near, far) = duplex(1 << 20);
        let nobody = |_: &[Vec<u8>]| String::new();
        let mut connections = incoming(
            Once(Some(near)),
            Arc::clone(server),
            ANSWER_TIMEOUT,
            nobody,
            ToString::to_string,
        );
        let refused = talk(far, bytes);
        let answer = tokio::select! {
            answer = refused => answer,
            _ = tokio_stream::StreamExt::next(&mut connections) => panic!("a stranger was let in"),
        };

        let (near, far) = duplex(1 << 20);
        let network = OneCall(Mutex::new(Some(near)));
        let call = connect_over(&network, "https://127.0.0.1:1", Arc::clone(client));
        let (connected, _) = tokio::join!(call, talk(far, bytes));
        assert!(connected.is_err(), "a stranger was taken for the coordinator");
        answer > ALERT_BYTES
    })
}

/// Sends `bytes`, no more, and reads until the other side has closed; returns how much it said.
async fn talk(mut stream: DuplexStream, bytes: &[u8]) -> usize {
    let all = async {
        // The other side may close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer.len()
    };
    tokio::time::timeout(ANSWER_TIMEOUT, all).await.expect("the connection was closed")
}
