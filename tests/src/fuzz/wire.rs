//! What comes over the wire: messages, chunks, plans, names.

use std::fmt::Debug;

use comity_certs::Identity;
use comity_federation::{ClientId, Contribution, ModelDigest, Plan, RunId, RunReport};
use comity_proto::chunk::{CHUNK_BYTES, CHUNK_BYTES_MIN, Reassembly};
use comity_proto::convert::{digest, run_id, update_header};
use comity_proto::limits::PLAN_BYTES_MAX;
use comity_proto::v1;
use prost::Message;

/// Longest transfer that is played here.
const TRANSFER_BYTES_MAX: u64 = 4 << 20;

/// A transfer: an announced length, then chunks as the bytes say (eight an item: offset and length), and
/// the bytes themselves cut into chunks and put together again.
///
/// # Panics
/// If chunks are taken that do not follow one another, or pass what was announced.
pub fn chunk_stream(bytes: &[u8]) -> bool {
    let (words, _) = bytes.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let total = u64::from(words.next().unwrap_or(0)) % TRANSFER_BYTES_MAX;
    let mut reassembly = Reassembly::new(0, total);
    let mut taken = 0u64;
    while let (Some(offset), Some(len)) = (words.next(), words.next()) {
        // Small numbers are as they stand, so that a seed can be read; large ones may wrap the end.
        let offset = match offset {
            ..0xff00_0000 => u64::from(offset),
            large => u64::MAX - u64::from(u32::MAX - large),
        };
        let len = len as usize % (CHUNK_BYTES + 2);
        let chunk = v1::Chunk { offset, data: vec![0; len].into() };
        if reassembly.accept(&chunk).is_ok() {
            assert_eq!(offset, taken, "a chunk out of order was taken");
            assert!((1..=CHUNK_BYTES).contains(&len), "a chunk of {len} bytes was taken");
            taken += len as u64;
            assert!(taken <= total, "more was taken than announced");
            assert!(len >= CHUNK_BYTES_MIN || taken == total, "a chunk of {len} bytes was taken");
        }
    }
    let complete = reassembly.finish().is_ok();
    assert_eq!(complete, taken == total);

    let mut whole = Reassembly::new(0, bytes.len() as u64);
    let mut back = Vec::new();
    for data in bytes.chunks(CHUNK_BYTES) {
        let chunk = v1::Chunk { offset: back.len() as u64, data: data.to_vec().into() };
        whole.accept(&chunk).expect("our own chunks follow one another");
        back.extend_from_slice(&chunk.data);
    }
    whole.finish().expect("our own chunks are complete");
    assert_eq!(back, bytes);
    complete && total > 0
}

/// Every message of the protocol out of the same bytes, and what is made of it.
///
/// # Panics
/// If a message that was understood does not come back as it went.
pub fn wire_messages(bytes: &[u8]) -> bool {
    let mut understood = false;
    again::<v1::HelloRequest>(bytes);
    again::<v1::HelloReply>(bytes);
    again::<v1::FollowRequest>(bytes);
    again::<v1::Assignment>(bytes);
    again::<v1::CheckInRequest>(bytes);
    again::<v1::DeclineRequest>(bytes);
    again::<v1::WithdrawRequest>(bytes);
    again::<v1::FetchModelRequest>(bytes);
    again::<v1::Chunk>(bytes);
    again::<v1::UpdatePart>(bytes);
    again::<v1::SubmitReply>(bytes);
    again::<v1::StartRunRequest>(bytes);
    again::<v1::StartRunReply>(bytes);
    again::<v1::ListRunsReply>(bytes);
    again::<v1::WatchRunRequest>(bytes);
    again::<v1::AbortRunRequest>(bytes);
    again::<v1::ExportModelRequest>(bytes);
    again::<v1::ExportPart>(bytes);
    if let Some(wire) = again::<v1::UpdateHeader>(bytes)
        && let (Ok(run), Ok(contribution)) =
            (run_id(&wire.run_id), Contribution::try_from(wire.clone()))
    {
        let header = update_header(&run, &contribution);
        assert_eq!(Contribution::try_from(header), Ok(contribution));
        understood = true;
    }
    if let Some(wire) = again::<v1::RunReport>(bytes)
        && let Ok(report) = RunReport::try_from(wire)
    {
        let back = RunReport::try_from(v1::RunReport::from(report.clone()));
        assert_eq!(back.as_ref(), Ok(&report));
        understood = true;
    }
    understood
}

/// The message in `bytes`, if it is one; it comes back as it went.
fn again<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let back = M::decode(&message.encode_to_vec()[..]);
    assert_eq!(back.as_ref(), Ok(&message));
    Some(message)
}

/// A plan as an operator writes it.
///
/// # Panics
/// If a plan that was taken has no model, or another digest once it has travelled.
pub fn plan_toml(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= PLAN_BYTES_MAX);
    text.and_then(|text| Plan::from_toml(text).ok()).inspect(travels).is_some()
}

/// A plan as it travels.
///
/// # Panics
/// As [`plan_toml`].
pub fn plan_json(bytes: &[u8]) -> bool {
    let json = Some(bytes).filter(|json| json.len() <= PLAN_BYTES_MAX);
    json.and_then(|json| Plan::from_json(json).ok()).inspect(travels).is_some()
}

fn travels(plan: &Plan) {
    plan.manifest().expect("a plan that was read has a model");
    let json = plan.to_json();
    let back = Plan::from_json(&json).expect("our own plan can be read");
    assert_eq!(&back, plan);
    assert_eq!(back.digest(), plan.digest());
    assert_eq!(back.to_json(), json);
}

/// The names that stand in messages, files and paths.
///
/// # Panics
/// If a name that was taken reads back as another, or could leave its folder.
pub fn names(bytes: &[u8]) -> bool {
    let _ = digest("digest", bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut understood = false;
    if let Ok(client) = text.parse::<ClientId>() {
        assert_eq!(client.to_string().parse(), Ok(client.clone()));
        stays(client.institution());
        understood = true;
    }
    if let Ok(run) = text.parse::<RunId>() {
        assert_eq!(run.to_string().parse(), Ok(run.clone()));
        stays(run.as_str());
        understood = true;
    }
    if let Ok(model) = text.parse::<ModelDigest>() {
        assert_eq!(model.to_string().parse(), Ok(model));
        understood = true;
    }
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string().parse::<Identity>().ok(), Some(identity));
        understood = true;
    }
    understood
}

fn stays(name: &str) {
    let plain = !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
    assert!(plain, "{name:?} is no file name");
}
