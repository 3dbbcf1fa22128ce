//! A bad link for real processes: a TCP proxy on loopback whose weather its owner changes while
//! connections are open.
//!
//! Nothing here is random: the owner says what happens and when. Bytes that are under way keep their order
//! and their distance, so a long delay does not make a narrow link: only [`Proxy::set_rate`] does.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that are read at once.
const BLOCK_BYTES: usize = 64 << 10;
/// Bytes under way in one direction: enough for 1.2 Gbit/s at 200 ms each way.
const UNDER_WAY_BYTES_MAX: usize = 64 << 20;
/// How often a thread that waits looks whether it is to end.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// What the link does to bytes at this moment.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// One way.
    latency: Duration,
    bytes_per_second: Option<u64>,
    stalled: bool,
}

#[derive(Debug, Default)]
struct Shared {
    weather: Mutex<Weather>,
    changed: Condvar,
    /// Bytes still to corrupt.
    to_corrupt: AtomicU64,
    connections: Mutex<Vec<Arc<Connection>>>,
    n_accepted: AtomicU64,
    /// Bytes that were handed on, towards the server and towards the clients.
    n_passed: [AtomicU64; 2],
    /// Bytes towards the server until their connection is cut; 0 is never.
    to_cut: AtomicU64,
    ended: AtomicBool,
}

/// Index of a direction in [`Shared::n_passed`].
const UP: usize = 0;
const DOWN: usize = 1;

impl Shared {
    /// Counts `n` bytes towards the server; how many of them still pass, if their connection is to be cut.
    fn cuts(&self, n: usize) -> Option<usize> {
        let order = Ordering::Relaxed;
        let left = self
            .to_cut
            .fetch_update(order, order, |left| (left > 0).then(|| left.saturating_sub(n as u64)));
        left.ok().filter(|left| *left <= n as u64).map(|left| left as usize - 1)
    }
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Its bytes vanish, both ways, and nobody is told.
    forgotten: AtomicBool,
    closed: AtomicBool,
}

impl Connection {
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

/// A proxy in front of one server; it ends, with its connections and threads, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of loopback and forwards to `server`; the weather is fair.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, server, &shared)
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn n_accepted(&self) -> u64 {
        self.shared.n_accepted.load(Ordering::Relaxed)
    }

    /// Bytes that were handed on towards the server, over all connections.
    #[must_use]
    pub fn n_bytes_up(&self) -> u64 {
        self.shared.n_passed[UP].load(Ordering::Relaxed)
    }

    /// Bytes that were handed on towards the clients, over all connections.
    #[must_use]
    pub fn n_bytes_down(&self) -> u64 {
        self.shared.n_passed[DOWN].load(Ordering::Relaxed)
    }

    /// Cuts the connection that carries the `n`th byte from now on towards the server, before that byte.
    pub fn cut_before_up(&self, n: u64) {
        self.shared.to_cut.store(n, Ordering::Relaxed);
    }

    /// Whether a cut that was ordered is still to come.
    #[must_use]
    pub fn has_to_cut(&self) -> bool {
        self.shared.to_cut.load(Ordering::Relaxed) > 0
    }

    /// Delays every byte by so much, each way.
    pub fn set_latency(&self, latency: Duration) {
        self.change(|weather| weather.latency = latency);
    }

    /// Lets at most so many bytes a second through each direction of each connection.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.change(|weather| weather.bytes_per_second = bytes_per_second);
    }

    /// Holds all bytes back, or lets them go on; none is lost.
    pub fn stall(&self, stalled: bool) {
        self.change(|weather| weather.stalled = stalled);
    }

    /// Flips one bit in each of the next `n` blocks that pass, whatever was asked before.
    pub fn corrupt(&self, n: u64) {
        self.shared.to_corrupt.store(n, Ordering::Relaxed);
    }

    /// Closes all open connections at once, in the middle of whatever they carry.
    pub fn reset(&self) {
        for connection in lock(&self.shared.connections).drain(..) {
            connection.close();
        }
        self.shared.changed.notify_all();
    }

    /// Closes the direction towards the clients; what they send still arrives.
    pub fn half_close(&self) {
        for connection in &*lock(&self.shared.connections) {
            let _ = connection.client.shutdown(Shutdown::Write);
        }
    }

    /// Forgets the open connections as a NAT does that was idle for long: their bytes vanish both ways and
    /// neither end is told. New connections work.
    pub fn forget(&self) {
        for connection in &*lock(&self.shared.connections) {
            connection.forgotten.store(true, Ordering::Relaxed);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut lock(&self.shared.weather));
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.reset();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, server: SocketAddr, shared: &Arc<Shared>) {
    let mut carriers: Vec<JoinHandle<()>> = Vec::new();
    while !shared.ended.load(Ordering::Relaxed) {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(LOOK_PAUSE);
                continue;
            }
            Err(_) => break,
        };
        // A server that is away refuses: dropping the client's socket tells it so.
        let Ok(server) = TcpStream::connect(server) else { continue };
        if let Ok(threads) = connect(client, server, shared) {
            carriers.retain(|thread| !thread.is_finished());
            carriers.extend(threads);
        }
    }
    for connection in lock(&shared.connections).drain(..) {
        connection.close();
    }
    for carrier in carriers {
        let _ = carrier.join();
    }
}

fn connect(
    client: TcpStream,
    server: TcpStream,
    shared: &Arc<Shared>,
) -> io::Result<Vec<JoinHandle<()>>> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (up, down) =
        ((client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?));
    let connection = Arc::new(Connection {
        client,
        server,
        forgotten: AtomicBool::new(false),
        closed: AtomicBool::new(false),
    });
    lock(&shared.connections).push(Arc::clone(&connection));
    shared.n_accepted.fetch_add(1, Ordering::Relaxed);
    let mut threads = Vec::new();
    for (direction, (from, to)) in [(UP, up), (DOWN, down)] {
        let pipe = Arc::new(Pipe::default());
        threads.push(std::thread::spawn({
            let pipe = Arc::clone(&pipe);
            move || pipe.fill(from)
        }));
        let (shared, connection) = (Arc::clone(shared), Arc::clone(&connection));
        threads.push(std::thread::spawn(move || {
            pipe.drain(to, direction, &shared, &connection);
            connection.closed.store(true, Ordering::Relaxed);
            pipe.close();
        }));
    }
    Ok(threads)
}

/// One direction: what was read and when, until it is written.
#[derive(Debug, Default)]
struct Pipe {
    under_way: Mutex<UnderWay>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct UnderWay {
    blocks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// No more comes in.
    ended: bool,
    /// No more goes out.
    closed: bool,
}

impl Pipe {
    fn close(&self) {
        lock(&self.under_way).closed = true;
        self.moved.notify_all();
    }

    fn fill(&self, mut from: TcpStream) {
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let n = match from.read(&mut block) {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            let mut under_way = lock(&self.under_way);
            while under_way.bytes > UNDER_WAY_BYTES_MAX && !under_way.closed {
                under_way = self.moved.wait(under_way).unwrap_or_else(PoisonError::into_inner);
            }
            if under_way.closed {
                break;
            }
            under_way.blocks.push_back((Instant::now(), block[..n].to_vec()));
            under_way.bytes += n;
            self.moved.notify_all();
        }
        lock(&self.under_way).ended = true;
        self.moved.notify_all();
    }

    fn drain(&self, mut to: TcpStream, direction: usize, shared: &Shared, connection: &Connection) {
        loop {
            let (read_at, mut block) = {
                let mut under_way = lock(&self.under_way);
                loop {
                    if connection.closed.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some((read_at, block)) = under_way.blocks.pop_front() {
                        under_way.bytes -= block.len();
                        self.moved.notify_all();
                        break (read_at, block);
                    }
                    if under_way.ended {
                        let _ = to.shutdown(Shutdown::Write);
                        return;
                    }
                    let waited = self.moved.wait_timeout(under_way, LOOK_PAUSE);
                    under_way = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            };
            let Some(weather) = hold(read_at, shared, connection) else { return };
            if connection.forgotten.load(Ordering::Relaxed) {
                continue;
            }
            let corrupts = |left: u64| left.checked_sub(1);
            let order = Ordering::Relaxed;
            if shared.to_corrupt.fetch_update(order, order, corrupts).is_ok() {
                let middle = block.len() / 2;
                block[middle] ^= 1;
            }
            let pieces = weather.bytes_per_second.map_or(block.len(), |rate| {
                usize::try_from(rate / 50).unwrap_or(usize::MAX).clamp(1, block.len())
            });
            for piece in block.chunks(pieces) {
                let cut = if direction == UP { shared.cuts(piece.len()) } else { None };
                let piece = &piece[..cut.unwrap_or(piece.len())];
                shared.n_passed[direction].fetch_add(piece.len() as u64, Ordering::Relaxed);
                if to.write_all(piece).is_err() {
                    return;
                }
                if cut.is_some() {
                    return connection.close();
                }
                if let Some(rate) = weather.bytes_per_second {
                    std::thread::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64));
                }
            }
        }
    }
}

/// Waits until a block that was read at `read_at` is due; `None` if its connection ends before.
fn hold(read_at: Instant, shared: &Shared, connection: &Connection) -> Option<Weather> {
    let mut weather = lock(&shared.weather);
    loop {
        if connection.closed.load(Ordering::Relaxed) || shared.ended.load(Ordering::Relaxed) {
            return None;
        }
        let left = weather.latency.saturating_sub(read_at.elapsed());
        if !weather.stalled && left.is_zero() {
            return Some(*weather);
        }
        let pause = if weather.stalled { LOOK_PAUSE } else { left };
        let waited = shared.changed.wait_timeout(weather, pause);
        weather = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, for one connection after the other.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let _ = io::copy(&mut &stream, &mut &stream);
                });
            }
        });
        address
    }

    fn dial(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn ask(stream: &mut TcpStream, question: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(question)?;
        let mut answer = vec![0; question.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn latency_delays_both_ways_and_does_not_narrow_the_link() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = dial(&proxy);
        assert_eq!(ask(&mut stream, b"fair").unwrap(), b"fair");
        proxy.set_latency(Duration::from_millis(60));
        let started = Instant::now();
        assert_eq!(ask(&mut stream, b"slow").unwrap(), b"slow");
        assert!(started.elapsed() >= Duration::from_millis(120));
        // Eight megabytes in blocks of 64 KiB would take 15 s if each waited for the one before.
        let started = Instant::now();
        let mut sender = stream.try_clone().unwrap();
        let sent = std::thread::spawn(move || sender.write_all(&vec![7; 8 << 20]).unwrap());
        let mut answer = vec![0; 8 << 20];
        stream.read_exact(&mut answer).unwrap();
        sent.join().unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[test]
    fn bytes_are_held_lost_flipped_and_cut_off_as_ordered() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = dial(&proxy);
        proxy.corrupt(1);
        assert_ne!(ask(&mut stream, b"a byte").unwrap(), b"a byte");
        assert_eq!(ask(&mut stream, b"a byte").unwrap(), b"a byte");

        proxy.set_rate(Some(20_000));
        let started = Instant::now();
        ask(&mut stream, &[1; 4_000]).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(170), "{:?}", started.elapsed());
        proxy.set_rate(None);

        proxy.stall(true);
        stream.set_read_timeout(Some(Duration::from_millis(80))).unwrap();
        assert!(ask(&mut stream, b"held").is_err());
        proxy.stall(false);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut held = [0; 4];
        stream.read_exact(&mut held).unwrap();
        assert_eq!(&held, b"held");

        proxy.forget();
        stream.set_read_timeout(Some(Duration::from_millis(80))).unwrap();
        let lost = ask(&mut stream, b"lost").unwrap_err();
        assert!(matches!(lost.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{lost}");
        let mut stream = dial(&proxy);
        assert_eq!(ask(&mut stream, b"anew").unwrap(), b"anew");

        proxy.half_close();
        assert!(ask(&mut stream, b"half").is_err());
        let mut stream = dial(&proxy);
        assert_eq!(ask(&mut stream, b"anew").unwrap(), b"anew");
        proxy.reset();
        assert!(ask(&mut stream, b"gone").is_err());
        assert_eq!(proxy.n_accepted(), 3);

        let (up, down) = (proxy.n_bytes_up(), proxy.n_bytes_down());
        let mut stream = dial(&proxy);
        proxy.cut_before_up(6);
        assert_eq!(ask(&mut stream, b"5 are").unwrap(), b"5 are");
        assert!(ask(&mut stream, b"6 not").is_err());
        assert_eq!((proxy.n_bytes_up() - up, proxy.n_bytes_down() - down), (5, 5));
        assert!(!proxy.has_to_cut());
        let mut stream = dial(&proxy);
        assert_eq!(ask(&mut stream, b"anew").unwrap(), b"anew");
    }
}
