//! Clients of the plan played by hand: updates of other rounds, other files, other orders, and of two
//! processes with one identity.

use comity_federation::{RunReport, RunStatus};
use comity_proto::chunk::CHUNK_BYTES;
use comity_proto::transport::connect;
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::v1::{self, assignment::What, update_part::Part};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::{ANSWER_TIMEOUT, Member};
use crate::system::{PLAN, Site};

/// A model of two chunks.
fn plan(rounds: u32) -> String {
    let start = PLAN.find("layers = [").unwrap();
    let end = start + PLAN[start..].find("\n]\n").unwrap() + 2;
    let layers = "layers = [{ type = \"flatten\" }, { type = \"linear\", out = 2000 }, { type = \"linear\", out = 2 }]";
    PLAN.replace(&PLAN[start..end], layers).replace("rounds = 3", &format!("rounds = {rounds}"))
}

/// A client played by hand.
struct Hand {
    client: FederationClient<Channel>,
    assignments: Streaming<v1::Assignment>,
    seed: u8,
}

/// A round that is open for a hand.
#[derive(Clone)]
struct Open {
    run: String,
    train: v1::Train,
}

impl Hand {
    async fn new(member: &Member, seed: u8) -> Self {
        let channel = connect(&member.url, member.tls.clone()).await.unwrap();
        let mut client = FederationClient::new(channel);
        let follow = client.follow(v1::FollowRequest::default()).await.unwrap();
        Self { client, assignments: follow.into_inner(), seed }
    }

    async fn next(&mut self) -> (String, What) {
        let next = tokio::time::timeout(ANSWER_TIMEOUT, self.assignments.message()).await;
        let assignment = next.expect("an assignment in time").unwrap().unwrap();
        (assignment.run_id, assignment.what.unwrap())
    }

    /// Agrees to the plan that is offered.
    async fn check_in(&mut self) {
        let (run_id, What::Offer(offer)) = self.next().await else { panic!("no offer") };
        let request = v1::CheckInRequest { run_id, plan_digest: offer.plan_digest };
        self.client.check_in(request).await.unwrap();
    }

    async fn open(&mut self) -> Open {
        loop {
            if let (run, What::Train(train)) = self.next().await {
                return Open { run, train };
            }
        }
    }

    /// The bytes of this hand's update number `n`.
    fn bytes(&self, open: &Open, n: u8) -> Vec<u8> {
        let words = open.train.model_bytes / 4;
        (0..words).flat_map(|i| [i as u8, self.seed, n, 0]).collect()
    }

    async fn offset(&mut self, header: &v1::UpdateHeader) -> Result<u64, Status> {
        self.client.upload_offset(header.clone()).await.map(|reply| reply.get_ref().offset)
    }

    /// Sends `parts` as they are; whether the coordinator had the update already.
    async fn send(&mut self, parts: Vec<Part>) -> Result<bool, Status> {
        let parts = parts.into_iter().map(|part| v1::UpdatePart { part: Some(part) });
        let sent = self.client.submit_update(tokio_stream::iter(parts.collect::<Vec<_>>()));
        let reply = tokio::time::timeout(ANSWER_TIMEOUT, sent).await.expect("an answer in time")?;
        Ok(reply.get_ref().already_had_it)
    }

    async fn submit(&mut self, open: &Open, n: u8) -> Result<bool, Status> {
        let bytes = self.bytes(open, n);
        self.send(update(header(open, &bytes), &bytes)).await
    }
}

fn header(open: &Open, bytes: &[u8]) -> v1::UpdateHeader {
    v1::UpdateHeader {
        run_id: open.run.clone(),
        round: open.train.round,
        plan_digest: open.train.plan_digest.clone(),
        base_digest: open.train.model_digest.clone(),
        update_digest: blake3::hash(bytes).as_bytes().to_vec().into(),
        n_parameters: bytes.len() as u64 / 4,
        total_bytes: bytes.len() as u64,
        ..v1::UpdateHeader::default()
    }
}

fn chunk(bytes: &[u8], from: usize, to: usize) -> Part {
    Part::Chunk(v1::Chunk { offset: from as u64, data: bytes[from..to].to_vec().into() })
}

fn update(header: v1::UpdateHeader, bytes: &[u8]) -> Vec<Part> {
    let n = bytes.len();
    vec![Part::Header(header), chunk(bytes, 0, CHUNK_BYTES), chunk(bytes, CHUNK_BYTES, n)]
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(
    what: &str,
    answer: Result<T, Status>,
    code: Code,
    word: &str,
) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), code, "{what}: {status}");
    assert!(status.message().contains(word), "{what}: {status}");
}

fn hands(site: &Site, runtime: &tokio::runtime::Runtime) -> (Vec<Member>, Vec<Hand>) {
    let members: Vec<Member> = ["KR/a", "JP/b", "VN/c"].map(|id| Member::new(site, id)).into();
    let hands = runtime.block_on(async {
        let mut hands = Vec::new();
        for (seed, member) in (1..).zip(&members) {
            hands.push(Hand::new(member, seed).await);
        }
        hands
    });
    (members, hands)
}

fn contributors(report: &RunReport, round: usize) -> Vec<String> {
    report.history[round - 1].contributions.iter().map(|c| c.client.to_string()).collect()
}

// BAD_INPUTS 27, 44, 50, 55, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68
#[test]
fn updates_of_other_rounds_files_and_orders_are_refused_and_the_right_ones_count_once() {
    let site = Site::new(&plan(3));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (members, mut hands) = hands(&site, &runtime);
    let run = site.launch();
    runtime.block_on(async {
        let mut twin = Hand::new(&members[0], 9).await;
        for hand in &mut hands {
            hand.check_in().await;
        }
        let open = hands[0].open().await;
        assert_eq!(open.train.round, 1);
        let kr = &mut hands[0];
        let bytes = kr.bytes(&open, 0);
        let (n, well) = (bytes.len(), header(&open, &bytes));
        let (first, rest) = (chunk(&bytes, 0, CHUNK_BYTES), chunk(&bytes, CHUNK_BYTES, n));
        let head = Part::Header(well.clone());

        // The order of chunks; what was right of it may stay staged, and 0 always begins anew.
        let late = chunk(&bytes, CHUNK_BYTES, n);
        let over = chunk(&bytes, CHUNK_BYTES - 8, n);
        let more = Part::Chunk(v1::Chunk { offset: n as u64, data: vec![0; 4].into() });
        for (what, parts, code, word) in [
            ("the second chunk first", vec![late, first.clone()], Code::Aborted, "go on from"),
            (
                "a chunk twice",
                vec![first.clone(), first.clone()],
                Code::InvalidArgument,
                "expected",
            ),
            ("overlapping chunks", vec![first.clone(), over], Code::InvalidArgument, "expected"),
            ("a missing chunk", vec![first.clone()], Code::InvalidArgument, "ended after"),
            (
                "a second header",
                vec![head.clone(), first.clone()],
                Code::InvalidArgument,
                "one header",
            ),
            (
                "one chunk too many",
                vec![first.clone(), rest.clone(), more],
                Code::InvalidArgument,
                "end",
            ),
        ] {
            let parts = [vec![head.clone()], parts].concat();
            assert_refused(what, kr.send(parts).await, code, word);
        }
        assert_refused(
            "no header",
            kr.send(vec![first.clone()]).await,
            Code::InvalidArgument,
            "header",
        );
        let unused = kr.offset(&well).await.unwrap();
        assert!(unused <= n as u64);

        // Other bytes than announced, then another file than the one that was begun.
        let other = kr.bytes(&open, 1);
        let wrong = kr.send(update(well.clone(), &other)).await;
        assert_refused("other bytes", wrong, Code::DataLoss, "send it again");
        assert_eq!(kr.offset(&well).await.unwrap(), 0, "nothing of them stays");
        let _ = kr.send(vec![head.clone(), first]).await;
        assert_eq!(kr.offset(&well).await.unwrap(), CHUNK_BYTES as u64);
        let resumed = vec![Part::Header(header(&open, &other)), rest];
        assert_refused("a rest of another file", kr.send(resumed).await, Code::Aborted, "0 bytes");
        assert_eq!(kr.offset(&header(&open, &other)).await.unwrap(), 0);

        // Other rounds, runs, plans, models and sizes.
        let with = |change: fn(&mut v1::UpdateHeader)| {
            let mut header = well.clone();
            change(&mut header);
            update(header, &bytes)
        };
        for (what, parts, code) in [
            ("round 0", with(|h| h.round = 0), Code::FailedPrecondition),
            ("the next round", with(|h| h.round = 2), Code::FailedPrecondition),
            ("a round that never comes", with(|h| h.round = u32::MAX), Code::FailedPrecondition),
            ("an unknown run", with(|h| h.run_id = "nothing-1".to_owned()), Code::NotFound),
            (
                "a run id that is a path",
                with(|h| h.run_id = "../journal".to_owned()),
                Code::InvalidArgument,
            ),
            ("another plan", with(|h| h.plan_digest = vec![7; 32].into()), Code::InvalidArgument),
            ("another model", with(|h| h.base_digest = vec![7; 32].into()), Code::InvalidArgument),
            (
                "half a digest",
                with(|h| h.update_digest = vec![7; 16].into()),
                Code::InvalidArgument,
            ),
            (
                "more than the model",
                with(|h| (h.n_parameters, h.total_bytes) = (1 << 40, 4 << 40)),
                Code::InvalidArgument,
            ),
            (
                "a size that overflows",
                with(|h| (h.n_parameters, h.total_bytes) = (u64::MAX, u64::MAX)),
                Code::InvalidArgument,
            ),
            ("an encoding that nobody knows", with(|h| h.encoding = 77), Code::InvalidArgument),
            ("sizes that disagree", with(|h| h.total_bytes += 4), Code::InvalidArgument),
        ] {
            assert_refused(what, kr.send(parts).await, code, "");
        }

        // The right one, the same again, another one, and another process with the same certificate.
        assert!(!kr.submit(&open, 0).await.unwrap());
        assert!(kr.submit(&open, 0).await.unwrap(), "the same update again is a success");
        assert_eq!(kr.offset(&well).await.unwrap(), n as u64);
        assert_refused("a second update", kr.submit(&open, 1).await, Code::AlreadyExists, "");
        assert_eq!(twin.open().await.train, open.train);
        assert_refused("a twin's update", twin.submit(&open, 0).await, Code::AlreadyExists, "");
        for hand in &mut hands[1..] {
            let open = hand.open().await;
            assert!(!hand.submit(&open, 0).await.unwrap());
        }

        let second = hands[0].open().await;
        assert_eq!(second.train.round, 2);
        assert!(hands[0].submit(&open, 0).await.unwrap(), "known, though its round is over");
        let stale = hands[0].submit(&open, 3).await;
        assert_refused("an update of the round before", stale, Code::FailedPrecondition, "round");
        // The twin may be the faster one; then the other is refused.
        let there = twin.open().await;
        assert!(!twin.submit(&there, 5).await.unwrap());
        let beaten = hands[0].submit(&second, 0).await;
        assert_refused("the slower twin", beaten, Code::AlreadyExists, "");
        let abort = site.deployment.operator(&["run", "abort", &run, "--reason", "enough"]);
        abort.unwrap().success().unwrap();
        let open = hands[1].open().await;
        let after = hands[1].submit(&open, 7).await;
        assert_refused("an update after the end", after, Code::FailedPrecondition, "enough");
    });
    let report = site.wait_for_end(&run);
    assert_eq!(report.status, RunStatus::Aborted);
    let mut counted = contributors(&report, 1);
    counted.sort();
    assert_eq!(counted, ["JP/b", "KR/a", "VN/c"]);
    assert_eq!(contributors(&report, 2), ["KR/a"]);
    let staged = site.deployment.coordinator_dir().join("blobs/staged");
    assert_eq!(std::fs::read_dir(staged).unwrap().count(), 0);
    assert!(!super::log(&site).contains("panicked"));
}

// BAD_INPUTS 71, 72
#[test]
fn a_client_that_joins_in_the_middle_of_a_round_is_asked_in_the_next() {
    let plan = plan(2).replace("gathering_deadline = \"2m\"", "gathering_deadline = \"2s\"");
    let plan = plan.replace("min_clients = 3", "min_clients = 2");
    let site = Site::new(&plan.replace("min_countries = 3", "min_countries = 2"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_, mut hands) = hands(&site, &runtime);
    let run = site.launch();
    runtime.block_on(async {
        for hand in &mut hands[1..] {
            hand.check_in().await;
        }
        let first = hands[1].open().await;
        hands[0].check_in().await;
        let early = hands[0].submit(&first, 0).await;
        assert_refused("an update without an invitation", early, Code::PermissionDenied, "KR/a");
        for hand in &mut hands[1..] {
            assert!(!hand.submit(&first, 0).await.unwrap());
        }
        for hand in &mut hands {
            let mut open = hand.open().await;
            while open.train.round < 2 {
                open = hand.open().await;
            }
            assert!(!hand.submit(&open, 1).await.unwrap());
        }
    });
    let report = site.wait(&run, |report| report.status.is_terminal());
    assert_eq!(report.status, RunStatus::Finished, "{report:#?}");
    assert_eq!((contributors(&report, 1).len(), contributors(&report, 2).len()), (2, 3));
}
