//! Too much of everything: handshakes, connections, streams, frames, and bytes that come too slowly.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use comity_federation::RunStatus;
use comity_proto::limits::{CONCURRENT_STREAMS_MAX, CONNECTIONS_EACH_MAX, HANDSHAKES_MAX};

use super::{DATA, Member, RST_STREAM, Raw, log};
use crate::system::{PATIENCE, PLAN, Site};

const SUBMIT: &str = "/comity.v1.Federation/SubmitUpdate";
/// What `comity_proto::limits` says that one hostile member can make the coordinator hold.
const HOSTILE_MEMORY_MAX: u64 = 240 << 20;

/// 10,000 calls that are opened and never go on; the coordinator serves as many as it said.
fn open_streams(raw: &mut Raw) -> std::io::Result<()> {
    (0..10_000).try_for_each(|i| raw.call(2 * i + 1, SUBMIT))
}

/// 10,000 calls, each reset at once.
fn rapid_resets(raw: &mut Raw) -> std::io::Result<()> {
    (0..10_000).try_for_each(|i| {
        raw.call(2 * i + 1, SUBMIT)?;
        raw.frame(RST_STREAM, 0, 2 * i + 1, &8u32.to_be_bytes())
    })
}

/// 100,000 frames of data without any.
fn empty_data(raw: &mut Raw) -> std::io::Result<()> {
    raw.call(1, SUBMIT)?;
    (0..100_000).try_for_each(|_| raw.frame(DATA, 0, 1, &[]))
}

type Flood = fn(&mut Raw) -> std::io::Result<()>;

const FLOODS: [(&str, Flood); 3] = [
    ("10,000 streams", open_streams),
    ("rapid resets", rapid_resets),
    ("empty frames", empty_data),
];

// BAD_INPUTS 30, 31, 32
#[test]
fn a_flood_of_streams_resets_or_empty_frames_ends_its_connection_and_costs_little() {
    let site = Site::new(PLAN);
    let mallory = Member::new(&site, "KE/mallory");
    let before = site.deployment.coordinator_memory_peak().unwrap();
    for (what, flood) in FLOODS {
        let mut raw = mallory.raw().unwrap();
        // The coordinator may hang up in the middle.
        let _ = flood(&mut raw);
        assert!(raw.is_ended(), "{what}: the connection goes on");
    }
    let more = site.deployment.coordinator_memory_peak().unwrap() - before;
    println!("floods of frames cost {more} bytes");
    assert!(more < 64 << 20, "{more} bytes");
    assert!(!log(&site).contains("panicked"));
}

// BAD_INPUTS 19
#[test]
fn five_hundred_half_open_handshakes_keep_nobody_out() {
    let mut site = Site::new(PLAN);
    let clients = site.add_clients(None, true);
    let mallory = Member::new(&site, "KE/mallory");
    let dial = || TcpStream::connect(mallory.address).unwrap();
    let mut half_open: Vec<TcpStream> = (0..500).map(|_| dial()).collect();
    // The first bytes of a record that never ends.
    half_open.iter_mut().for_each(|tcp| drop(tcp.write_all(&[22, 3, 1, 2])));
    let began = Instant::now();
    let check = site.deployment.client(&clients[0], &["check"]).unwrap().success().unwrap();
    assert!(check.stdout.contains("says hello to"), "{}", check.stdout);
    println!("an honest client was let in after {} ms", began.elapsed().as_millis());
    // Those that made room were hung up on; the others stay until their time is over.
    let hung_up = |tcp: &mut TcpStream| {
        tcp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // Closed, or reset where something that was sent had not been read.
        let waits =
            |e: std::io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        tcp.read(&mut [0]).map_or_else(|error| !waits(error), |n| n == 0)
    };
    let n_room = half_open.len() - HANDSHAKES_MAX;
    let n_ended =
        half_open[..n_room].iter_mut().filter_map(|tcp| hung_up(tcp).then_some(())).count();
    assert!(n_ended + 5 >= n_room, "only {n_ended} of the oldest {n_room} made room");
}

// BAD_INPUTS 68
#[test]
fn one_member_has_its_share_of_connections_and_the_newest_stay() {
    let site = Site::new(PLAN);
    let mallory = Member::new(&site, "KE/mallory");
    let mut open: Vec<Raw> = (0..CONNECTIONS_EACH_MAX + 5)
        .map(|_| {
            let mut raw = mallory.raw().unwrap();
            // The server's first frame says that it has a place, so the oldest is the first one here.
            raw.0.read_exact(&mut [0; 9]).unwrap();
            raw
        })
        .collect();
    assert!(open[..5].iter_mut().all(Raw::is_ended), "an old connection stayed");
    open[5].0.sock.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(!open[5].is_ended(), "a connection within the share was ended");
}

/// Ends the attacks when it is dropped, also by a panic.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// BAD_INPUTS 19, 30, 31, 32, 34
#[test]
fn an_honest_federation_finishes_beside_a_member_that_attacks_with_everything() {
    let mut site = Site::new(&PLAN.replace("rounds = 3", "rounds = 6"));
    let clients = site.add_clients(None, true);
    let mallory = Member::new(&site, "KE/mallory");
    let before = site.deployment.coordinator_memory_peak().unwrap();
    let run_ended = AtomicBool::new(false);
    let goes_on = || !run_ended.load(Ordering::Relaxed);
    let (report, n_attacks) = std::thread::scope(|scope| {
        let ends = Ends(&run_ended);
        let floods = scope.spawn(|| {
            let mut n = 0;
            while goes_on() {
                for (_, flood) in FLOODS {
                    if let Ok(mut raw) = mallory.raw() {
                        let _ = flood(&mut raw);
                        n += 1;
                    }
                }
            }
            n
        });
        // Updates of one byte a second, as many at once as there is room for, on connections that come again.
        let slow = scope.spawn(|| {
            let mut n = 0;
            while goes_on() {
                let mut open: Vec<Raw> =
                    (0..CONNECTIONS_EACH_MAX).filter_map(|_| mallory.raw().ok()).collect();
                for raw in &mut open {
                    for stream in 0..CONCURRENT_STREAMS_MAX {
                        n += usize::from(raw.call(2 * stream + 1, SUBMIT).is_ok());
                    }
                }
                for _ in 0..5 {
                    for raw in &mut open {
                        for stream in 0..CONCURRENT_STREAMS_MAX {
                            let _ = raw.frame(DATA, 0, 2 * stream + 1, &[0]);
                        }
                    }
                    std::thread::sleep(Duration::from_secs(1));
                    if !goes_on() {
                        break;
                    }
                }
            }
            n
        });
        let half_open = scope.spawn(|| {
            let mut n = 0;
            while goes_on() {
                let open: Vec<_> =
                    (0..500).filter_map(|_| TcpStream::connect(mallory.address).ok()).collect();
                n += open.len();
                std::thread::sleep(Duration::from_millis(500));
            }
            n
        });
        site.start_clients(&clients);
        let run = site.launch();
        let report = site.wait_for_end(&run);
        drop(ends);
        let n = [floods, slow, half_open].map(|attack| attack.join().unwrap());
        (report, n)
    });
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert!(report.history.iter().all(|round| round.contributions.len() == 3), "{report:#?}");
    assert_eq!(report.model.to_string(), site.simulated_model());
    site.deployment.wait_for_clients(PATIENCE).unwrap();
    let more = site.deployment.coordinator_memory_peak().unwrap() - before;
    let [floods, slow, half_open] = n_attacks;
    println!(
        "{floods} floods, {slow} slow uploads and {half_open} half-open handshakes cost {more} bytes"
    );
    assert!(floods > 0 && slow > 0 && half_open >= 500, "too few attacks to mean anything");
    assert!(more < HOSTILE_MEMORY_MAX, "{more} bytes");
    assert!(!log(&site).contains("panicked"));
}
