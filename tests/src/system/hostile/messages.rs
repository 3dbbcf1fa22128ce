//! Messages that are none, headers without end and deadlines without sense.

use tonic::Code;

use super::{Member, call, log};
use crate::system::{PLAN, Site};

/// What it is, where it is sent, with which headers and bytes, and what the answer has to be.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Vec<u8>, Code);

const HELLO: &str = "/comity.v1.Federation/Hello";
/// `protocol = 1`.
const VERSION_1: [u8; 2] = [0x08, 0x01];

/// A gRPC message with its prefix.
fn framed(flag: u8, announced: u32, body: &[u8]) -> Vec<u8> {
    [&[flag][..], &announced.to_be_bytes(), body].concat()
}

fn message(body: &[u8]) -> Vec<u8> {
    framed(0, body.len() as u32, body)
}

// BAD_INPUTS 21, 22, 23, 24, 25, 26, 28, 29, 35, 36
#[test]
fn messages_that_are_none_are_refused_one_by_one_and_their_connection_goes_on() {
    let site = Site::new(PLAN);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mallory = Member::new(&site, "KE/mallory");
    let gzip = [("grpc-encoding", "gzip")];
    let zstd = [("grpc-encoding", "zstd")];
    let rot13 = [("grpc-encoding", "rot13")];
    // 1 KiB that would be 4 GiB; no encoding is taken, so nobody looks.
    let bomb = framed(1, 1024, &[0; 1024]);
    // Field 15 begins a group, in a group, in a group …
    let nested = message(&[0x7b; 10_000]);
    let unknown = message(&[0x08, 0x01, 0x98, 0x06, 0x05, 0xa2, 0x06, 0x01, 0x00]);
    let twice = message(&[0x08, 0x07, 0x08, 0x01]);
    let hello = message(&VERSION_1);
    let cases: [Case<'_>; 16] = [
        ("4 MiB + 1", HELLO, &[], message(&vec![0x0a; (4 << 20) + 1]), Code::OutOfRange),
        ("4 GiB announced", HELLO, &[], framed(0, u32::MAX, &[]), Code::OutOfRange),
        ("a gzip bomb", HELLO, &gzip, bomb.clone(), Code::Unimplemented),
        ("a zstd bomb", HELLO, &zstd, bomb.clone(), Code::Unimplemented),
        ("compressed without a word", HELLO, &[], bomb, Code::Internal),
        ("a flag of 9", HELLO, &[], framed(9, 2, &VERSION_1), Code::Internal),
        ("an unknown encoding", HELLO, &rot13, hello.clone(), Code::Unimplemented),
        ("a truncated message", HELLO, &[], message(&[0x12, 0x7f, b'x']), Code::Internal),
        ("half a prefix", HELLO, &[], vec![0, 0, 0], Code::Internal),
        ("deep nesting", HELLO, &[], nested, Code::Internal),
        ("no message at all", HELLO, &[], vec![], Code::Internal),
        ("fields of a newer version", HELLO, &[], unknown, Code::Ok),
        ("a singular field twice", HELLO, &[], twice, Code::Ok),
        (
            "another service version",
            "/comity.v2.Federation/Hello",
            &[],
            hello.clone(),
            Code::Unimplemented,
        ),
        ("no such call", "/comity.v1.Federation/Helo", &[], hello.clone(), Code::Unimplemented),
        (
            "a deadline in 11,000 years",
            HELLO,
            &[("grpc-timeout", "99999999H")],
            hello.clone(),
            Code::Ok,
        ),
    ];
    runtime.block_on(async {
        let send = mallory.connect().await;
        for (what, path, headers, body, expected) in cases {
            let answer = call(&send, path, headers, &body).await;
            let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(answer.code.map(Code::from), Some(expected), "{what}: {answer:?}");
            assert_eq!(answer.http, 200, "{what}");
            assert!(expected == Code::Ok || !answer.message.is_empty() || path != HELLO, "{what}");
        }
        // A deadline of nothing, and one that is none, are answered somehow.
        for timeout in ["0n", "soon", "-1S"] {
            let _ = call(&send, HELLO, &[("grpc-timeout", timeout)], &hello).await;
        }
        let last = call(&send, HELLO, &[], &hello).await.unwrap();
        assert_eq!(last.code, Some(0), "{last:?}");
    });
    assert!(!log(&site).contains("panicked"));
}

// BAD_INPUTS 33
#[test]
fn a_megabyte_of_headers_is_not_taken() {
    let site = Site::new(PLAN);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mallory = Member::new(&site, "KE/mallory");
    let before = site.deployment.coordinator_memory_peak().unwrap();
    runtime.block_on(async {
        let long = "x".repeat(1 << 20);
        for _ in 0..32 {
            let send = mallory.connect().await;
            match call(&send, HELLO, &[("x-long", &long)], &message(&VERSION_1)).await {
                Ok(answer) => assert_eq!(answer.http, 431, "{answer:?}"),
                Err(error) => assert!(error.is_remote() || error.is_io(), "{error}"),
            }
        }
        let send = mallory.connect().await;
        let hello = call(&send, HELLO, &[], &message(&VERSION_1)).await.unwrap();
        assert_eq!(hello.code, Some(0), "{hello:?}");
    });
    let more = site.deployment.coordinator_memory_peak().unwrap() - before;
    println!("32 MB of headers cost {more} bytes");
    assert!(more < 32 << 20, "{more} bytes");
    assert!(!log(&site).contains("panicked"));
}
