//! Connections: our own TLS acceptor in front of tonic, and a connector that can tell why it was
//! refused.
//!
//! tonic's own TLS settings offer no revocation, no reload and no choice of protocol version, and
//! in TLS 1.3 a client learns of a refused certificate only after its handshake is done: tonic
//! then reports "transport error".  The connector here waits for the server's first bytes (its
//! HTTP/2 settings) before it hands the connection over, so that the refusal is seen.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::hash::{Hash, Hasher as _};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};
use tracing::{debug, info};

pub use crate::connections::Connections;
use crate::connections::Place;
use crate::flow::{Flow, Taking};
use crate::limits;

/// How often somebody who waits for a handshake's place looks whether there is one.
const ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How long a connection for which there was no place may last: enough for the peer to read why.
const CROWDED_TIME: Duration = Duration::from_secs(5);
/// Bytes that the connector reads to see whether it was let in: an HTTP/2 frame header.
const FIRST_BYTES: usize = 9;

/// The certificates that a peer showed, and from where; in the extensions of each request.
#[derive(Clone, Debug)]
pub struct PeerCertificates {
    /// DER, the peer's own first.
    pub chain: Arc<[Vec<u8>]>,
    /// Where it connects from.
    pub address: Option<SocketAddr>,
    /// When the connection is old enough for the peer to make another.
    pub ages: Instant,
    /// The server has as many connections as it takes: nothing is done on this one.
    pub crowded: bool,
    flow: Arc<Flow>,
}

impl PeerCertificates {
    /// Begins to take an upload from this connection, which is read only as fast as it is taken.
    #[must_use]
    pub fn take(&self) -> Taking {
        Taking::new(Arc::clone(&self.flow))
    }
}

/// A stream of bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Where connections come in: a socket of the operating system, or a simulated one in tests.
pub trait Listen: Send + 'static {
    /// What is accepted.
    type Stream: Duplex + 'static;

    /// The next connection, and from where.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, address))
    }
}

/// What [`Dial::dial`] returns.
pub type Dialled<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send + 'a>>;

/// How a connection goes out: [`Tcp`], or a simulated network in tests.
pub trait Dial: Send + Sync {
    /// Connects to `address`, `HOST:PORT`.
    fn dial<'a>(&'a self, address: &'a str) -> Dialled<'a>;
}

/// The operating system's TCP.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, address: &'a str) -> Dialled<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

/// An accepted connection whose peer has shown a certificate that our root signed.
#[derive(Debug)]
pub struct TlsConnection<S> {
    stream: server::TlsStream<S>,
    peer: PeerCertificates,
    /// `None` if there was none.
    place: Option<Place>,
    /// When it is cut, whatever it carries.
    end: Pin<Box<Sleep>>,
}

impl<S> TlsConnection<S> {
    /// Whether the connection's place went to another, or its time is over; wakes the task when it is.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let taken =
            self.place.as_mut().is_some_and(|place| Pin::new(&mut place.ended).poll(cx).is_ready());
        if taken || self.end.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl<S: Duplex> Connected for TlsConnection<S> {
    type ConnectInfo = PeerCertificates;
    fn connect_info(&self) -> PeerCertificates {
        self.peer.clone()
    }
}

impl<S: Duplex> AsyncRead for TlsConnection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        if !self.peer.flow.has_room(cx) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.peer.flow.came(buf.filled().len() - before);
        polled
    }
}

impl<S: Duplex> AsyncWrite for TlsConnection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A peer that reads nothing must not keep its place: then only writing is polled.
        self.poll_end(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections on `listener` with the configuration that `tls` holds at that moment.
///
/// `who` names the identity of a peer by its certificates, DER, its own first, so that the connections of
/// each are counted; `why` says what a failed handshake means.
/// Handshakes run beside one another, at most [`limits::HANDSHAKES_MAX`], each at most
/// `handshake_timeout` long; when they are too many, the oldest of the address that has most of them makes
/// room, but none in its first second.  A refused one is logged with the peer's address and the reason.
pub fn incoming<L, W, Y>(
    listener: L,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    handshake_timeout: Duration,
    who: W,
    why: Y,
) -> impl Stream<Item = io::Result<TlsConnection<L::Stream>>> + Send + use<L, W, Y>
where
    L: Listen,
    W: Fn(&[Vec<u8>]) -> String + Send + Sync + 'static,
    Y: Fn(&rustls::Error) -> String + Send + Sync + 'static,
{
    incoming_among(listener, tls, handshake_timeout, who, why, Connections::default())
}

/// [`incoming`], counted among `connections`, by which they can be ended. A peer that shows no certificate,
/// where none is asked for, is named by its address.
pub fn incoming_among<L, W, Y>(
    mut listener: L,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    handshake_timeout: Duration,
    who: W,
    why: Y,
    connections: Connections,
) -> impl Stream<Item = io::Result<TlsConnection<L::Stream>>> + Send + use<L, W, Y>
where
    L: Listen,
    W: Fn(&[Vec<u8>]) -> String + Send + Sync + 'static,
    Y: Fn(&rustls::Error) -> String + Send + Sync + 'static,
{
    let (sender, receiver) = mpsc::channel(limits::ACCEPTED_MAX);
    let doorman = Arc::new(Doorman {
        who: Box::new(who),
        why: Box::new(why),
        connections,
        n_uploads: Arc::default(),
    });
    tokio::spawn(async move {
        let mut handshakes = VecDeque::new();
        loop {
            make_room(&mut handshakes).await;
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, most likely: wait for some to come back.
                        info!(%error, "connection not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let acceptor = TlsAcceptor::from(tls.load_full());
            let (sender, doorman) = (sender.clone(), Arc::clone(&doorman));
            let task = tokio::spawn(async move {
                let shaken = shake(acceptor, stream, address, &doorman);
                match tokio::time::timeout(handshake_timeout, shaken).await {
                    Ok(Ok(connection)) => {
                        debug!(%address, "connection accepted");
                        let _ = sender.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => {
                        let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
                        let error = tls.map_or_else(|| error.to_string(), &*doorman.why);
                        info!(%address, %error, "connection refused");
                    }
                    Err(_) => info!(%address, "connection refused: handshake timed out"),
                }
            });
            let (address, began) = (address.ip(), Instant::now());
            handshakes.push_back(Handshake { address, began, task: task.abort_handle() });
        }
    });
    ReceiverStream::new(receiver)
}

/// A handshake under way.
struct Handshake {
    address: IpAddr,
    began: Instant,
    task: AbortHandle,
}

/// Waits until there is a place for one more handshake; if there is none, the oldest of the address that has
/// most of them is ended, when its undisturbed time is over.
async fn make_room(handshakes: &mut VecDeque<Handshake>) {
    loop {
        handshakes.retain(|handshake| !handshake.task.is_finished());
        if handshakes.len() < limits::HANDSHAKES_MAX {
            return;
        }
        let mut n_of_each: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for handshake in &*handshakes {
            *n_of_each.entry(handshake.address).or_default() += 1;
        }
        let most = n_of_each.into_iter().max_by_key(|(_, n)| *n).map(|(address, _)| address);
        let oldest = handshakes.iter().position(|one| Some(one.address) == most);
        let oldest = oldest.expect("the address is one of theirs");
        let left = limits::HANDSHAKE_UNDISTURBED.saturating_sub(handshakes[oldest].began.elapsed());
        if left.is_zero() {
            let Handshake { address, task, .. } = handshakes.remove(oldest).expect("it is there");
            task.abort();
            info!(%address, "handshake ended: too many are under way");
            return;
        }
        tokio::time::sleep(left.min(ROOM_PAUSE)).await;
    }
}

/// Names a peer by its certificates, DER.
type Naming = Box<dyn Fn(&[Vec<u8>]) -> String + Send + Sync>;

/// Says what a failed handshake means.
type Explaining = Box<dyn Fn(&rustls::Error) -> String + Send + Sync>;

/// Who gives places to connections.
struct Doorman {
    who: Naming,
    why: Explaining,
    connections: Connections,
    /// Uploads under way on all connections.
    n_uploads: Arc<AtomicUsize>,
}

async fn shake<S: Duplex>(
    acceptor: TlsAcceptor,
    stream: S,
    address: SocketAddr,
    doorman: &Doorman,
) -> io::Result<TlsConnection<S>> {
    let stream = acceptor.accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain: Arc<[Vec<u8>]> = chain.iter().map(|der| der.to_vec()).collect();
    let who = match chain.is_empty() {
        true => address.ip().to_string(),
        false => (doorman.who)(&chain),
    };
    // The same peer at another port ages otherwise: a federation must not come back all at once.
    let age_max = doorman.connections.age_max;
    let tenth = age_max / 10;
    let age = age_max - tenth.mul_f64(fraction(&(&who, address)));
    let now = Instant::now();
    let place = doorman.connections.enter(who);
    let crowded = place.is_none();
    let flow = Arc::new(Flow::new(Arc::clone(&doorman.n_uploads)));
    let peer = PeerCertificates { chain, address: Some(address), ages: now + age, crowded, flow };
    let left = if crowded { CROWDED_TIME } else { age + limits::CONNECTION_AGE_GRACE };
    Ok(TlsConnection { stream, peer, place, end: Box::pin(tokio::time::sleep(left)) })
}

/// A number from 0 to 1 that is another for each `key` and always the same for one.
#[must_use]
pub fn fraction(key: &impl Hash) -> f64 {
    // SipHash with keys of zero: the same in every process.
    let mut hasher = std::hash::DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}

/// A tonic server with our windows, keep-alive and limits.
#[must_use]
pub fn server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(limits::KEEP_ALIVE))
        .http2_keepalive_timeout(Some(limits::KEEP_ALIVE))
        .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(limits::PENDING_RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(limits::ERROR_RESETS_MAX))
        .max_concurrent_streams(limits::CONCURRENT_STREAMS_MAX)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        .max_connection_age(limits::CONNECTION_AGE_MAX)
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not `https://HOST:PORT`.
    #[error("address {0:?} is not of the form https://HOST:PORT")]
    BadUrl(String),
    /// Nobody answers there.
    #[error("{address} cannot be reached: {source}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// From the operating system.
        source: io::Error,
    },
    /// The server refused us, or we it.
    #[error("{address}: {source}")]
    Refused {
        /// Host and port.
        address: String,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The peer closed the connection, or speaks something else than TLS and HTTP/2.
    #[error("{address} closed the connection during the handshake: {source}")]
    Closed {
        /// Host and port.
        address: String,
        /// From the operating system.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{address} did not answer within {} s", limits::CONNECT_TIMEOUT.as_secs())]
    Timeout {
        /// Host and port.
        address: String,
    },
    /// HTTP/2 could not be set up.
    #[error("{address}: {source}")]
    Http {
        /// Host and port.
        address: String,
        /// From tonic.
        source: tonic::transport::Error,
    },
}

/// Connects over [`Tcp`] to the coordinator at `url` (`https://HOST:PORT`) once; a lost connection is
/// not made again by itself.
///
/// # Errors
/// [`ConnectError`]; a refused certificate is always [`ConnectError::Refused`].
pub async fn connect(url: &str, tls: Arc<rustls::ClientConfig>) -> Result<Channel, ConnectError> {
    connect_over(&Tcp, url, tls).await
}

/// [`connect`] over another network.
///
/// # Errors
/// As [`connect`].
pub async fn connect_over(
    network: &dyn Dial,
    url: &str,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Channel, ConnectError> {
    let bad = || ConnectError::BadUrl(url.to_owned());
    let address = url.strip_prefix("https://").ok_or_else(bad)?.trim_end_matches('/').to_owned();
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    port.parse::<u16>().map_err(|_| bad())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
    let stream = tokio::time::timeout(limits::CONNECT_TIMEOUT, enter(network, &address, name, tls))
        .await
        .map_err(|_| ConnectError::Timeout { address: address.clone() })??;

    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::other("the connection was lost")) }
    });
    // tonic must not do TLS of its own, so it is told a plain address that is never dialled.
    Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| bad())?
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        .http2_keep_alive_interval(limits::KEEP_ALIVE)
        .keep_alive_timeout(limits::KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Http { address, source })
}

/// Dials, shakes hands, and waits for the server's first bytes.
async fn enter(
    network: &dyn Dial,
    address: &str,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Entered, ConnectError> {
    let tcp = network
        .dial(address)
        .await
        .map_err(|source| ConnectError::Unreachable { address: address.to_owned(), source })?;
    let failed = |source: io::Error| {
        let address = address.to_owned();
        match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(refusal) => ConnectError::Refused { address, source: refusal.clone() },
            None => ConnectError::Closed { address, source },
        }
    };
    let mut stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(failed)?;
    let mut first = vec![0; FIRST_BYTES];
    stream.read_exact(&mut first).await.map_err(failed)?;
    Ok(Entered { first, taken: 0, stream })
}

/// A connection whose first bytes were read already.
struct Entered {
    first: Vec<u8>,
    taken: usize,
    stream: client::TlsStream<Box<dyn Duplex>>,
}

impl AsyncRead for Entered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken < self.first.len() {
            let n = buf.remaining().min(self.first.len() - self.taken);
            buf.put_slice(&self.first[self.taken..self.taken + n]);
            self.taken += n;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Entered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
