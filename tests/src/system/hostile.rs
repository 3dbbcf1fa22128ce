//! Members with good certificates that keep to no rule, against a real coordinator. Whoever has no
//! certificate gets no further than the handshake.
//!
//! [`Member`] speaks TLS itself: with `h2` where only what is inside a message is wrong, and with frames made
//! by hand where HTTP/2 is. Each attack has to end in a refusal, cost the coordinator no more memory than
//! `comity_proto::limits` says, and disturb nobody else.

mod floods;
mod messages;
mod protocol;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use comity_certs::client_config;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Request;

use super::Site;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A member of the federation, and what it knows.
#[derive(Clone)]
struct Member {
    url: String,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Member {
    /// `id` with a certificate of its own.
    fn new(site: &Site, id: &str) -> Self {
        let dir = site.path(&format!("member-{}", id.replace('/', "-")));
        site.deployment.join(&id.parse().unwrap(), &dir).unwrap();
        let pem = |name: &str| std::fs::read_to_string(dir.join("certs").join(name)).unwrap();
        let url = site.deployment.url().unwrap();
        Self {
            address: url.strip_prefix("https://").unwrap().parse().unwrap(),
            url,
            tls: client_config(&pem("certificate.pem"), &pem("key.pem"), &pem("root.pem")).unwrap(),
        }
    }

    fn server_name(&self) -> ServerName<'static> {
        ServerName::from(self.address.ip())
    }

    /// HTTP/2 as it should be.
    async fn connect(&self) -> SendRequest<Bytes> {
        let tcp = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let tls = connector.connect(self.server_name(), tcp).await.unwrap();
        let (send, connection) = h2::client::handshake(tls).await.unwrap();
        tokio::spawn(connection);
        send
    }

    /// A connection on which nothing but HTTP/2's preface was sent.
    fn raw(&self) -> io::Result<Raw> {
        let tcp = TcpStream::connect(self.address)?;
        tcp.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        tcp.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let connection = ClientConnection::new(Arc::clone(&self.tls), self.server_name())
            .map_err(io::Error::other)?;
        let mut raw = Raw(StreamOwned::new(connection, tcp));
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        raw.frame(SETTINGS, 0, 0, &[])?;
        Ok(raw)
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;

/// HTTP/2 frames by hand.
struct Raw(StreamOwned<ClientConnection, TcpStream>);

impl Raw {
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame)
    }

    /// Opens `stream` with a call of `path`, which goes on.
    fn call(&mut self, stream: u32, path: &str) -> io::Result<()> {
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "coordinator"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            // A literal field that enters no table, without Huffman coding.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS, stream, &block)
    }

    /// Whether the coordinator ends the connection; reads whatever it says before.
    fn is_ended(&mut self) -> bool {
        let mut block = vec![0; 1 << 16];
        loop {
            match self.0.read(&mut block) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => {
                    let waits =
                        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    return !waits;
                }
            }
        }
    }
}

/// What the coordinator answered.
#[derive(Debug)]
struct Answer {
    http: u16,
    /// gRPC's status; absent if the stream was reset.
    code: Option<i32>,
    message: String,
}

/// Calls `path` with `headers` and the bytes of `body`, whatever they are.
async fn call(
    send: &SendRequest<Bytes>,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer, h2::Error> {
    let mut request = Request::post(format!("https://coordinator{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let all = async {
        let mut send = send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request.body(()).unwrap(), false)?;
        // The answer may come before all is sent.
        let _ = stream.send_data(Bytes::copy_from_slice(body), true);
        let response = response.await?;
        let http = response.status().as_u16();
        let mut fields = response.headers().clone();
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            let n = data?.len();
            let _ = body.flow_control().release_capacity(n);
        }
        if let Some(trailers) = body.trailers().await? {
            fields.extend(trailers);
        }
        let text = |name: &str| fields.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()));
        let code = text("grpc-status").map(|code| code.parse().unwrap());
        let message = text("grpc-message").unwrap_or_default().into_owned();
        Ok(Answer { http, code, message })
    };
    tokio::time::timeout(ANSWER_TIMEOUT, all).await.expect("an answer in time")
}

/// The coordinator's log so far.
fn log(site: &Site) -> String {
    std::fs::read_to_string(site.path("run/coordinator.log")).unwrap()
}
