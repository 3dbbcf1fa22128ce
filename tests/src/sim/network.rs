//! turmoil's network behind the seams of `proto::transport`, with connections that can be cut and bytes
//! that can be flipped at an exact place in the exchange.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use comity_proto::transport::{Dial, Dialled, Duplex, Listen};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// Where the coordinator listens.
pub(super) const PORT: u16 = 7443;

pub(super) struct Listener(TcpListener);

impl Listener {
    pub(super) async fn bind() -> io::Result<Self> {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
        Ok(Self(TcpListener::bind(any).await?))
    }
}

impl Listen for Listener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }
}

/// What is to happen to a client's connections; shared with the one who plays the faults.
#[derive(Clone, Debug, Default)]
pub(super) struct Fuse(Arc<Mutex<Lit>>);

#[derive(Debug, Default)]
struct Lit {
    /// Bytes until the connection breaks.
    cut: Option<u64>,
    /// Bytes until one is flipped.
    flip: Option<u64>,
}

impl Fuse {
    pub(super) fn cut_after(&self, bytes: u64) {
        self.0.lock().unwrap().cut = Some(bytes);
    }

    pub(super) fn flip_after(&self, bytes: u64) {
        self.0.lock().unwrap().flip = Some(bytes);
    }

    /// Puts out what has not gone off.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap() = Lit::default();
    }

    /// Counts `n` bytes that passed; whether the connection is to break now.
    fn passed(&self, n: usize) -> bool {
        let mut lit = self.0.lock().unwrap();
        match &mut lit.cut {
            Some(left) if *left <= n as u64 => {
                lit.cut = None;
                true
            }
            Some(left) => {
                *left -= n as u64;
                false
            }
            None => false,
        }
    }

    /// Counts `n` bytes on their way in; the place of the one to flip, if it is among them.
    fn flips(&self, n: usize) -> Option<usize> {
        let mut lit = self.0.lock().unwrap();
        match lit.flip {
            Some(left) if left < n as u64 => {
                lit.flip = None;
                Some(left as usize)
            }
            Some(left) => {
                lit.flip = Some(left - n as u64);
                None
            }
            None => None,
        }
    }
}

/// A client's way to the coordinator.
#[derive(Clone, Debug)]
pub(super) struct Network(pub(super) Fuse);

impl Dial for Network {
    fn dial<'a>(&'a self, address: &'a str) -> Dialled<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            let cable = Cable { stream, fuse: self.0.clone(), broken: false };
            Ok(Box::new(cable) as Box<dyn Duplex>)
        })
    }
}

struct Cable {
    stream: TcpStream,
    fuse: Fuse,
    broken: bool,
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the cable was cut")
}

impl AsyncRead for Cable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Err(reset()));
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            if let Some(at) = self.fuse.flips(n) {
                buf.filled_mut()[before + at] ^= 1;
            }
            if self.fuse.passed(n) {
                self.broken = true;
                buf.set_filled(before);
                return Poll::Ready(Err(reset()));
            }
        }
        outcome
    }
}

impl AsyncWrite for Cable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(reset()));
        }
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = &outcome
            && self.fuse.passed(*n)
        {
            // The bytes may well have arrived: that is what makes a lost reply.
            self.broken = true;
        }
        outcome
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
