//! The committed code is what the `.proto` files generate; nobody needs `protoc` or a build script.
//!
//! After a change: `UPDATE_GEN=1 cargo nextest run -p comity-proto generated`.

use std::path::Path;

#[test]
fn generated_code_is_fresh() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let includes = here.join("proto");
    let files =
        ["federation", "control", "enrolment"].map(|name| format!("comity/v1/{name}.proto"));
    let descriptors = protox::compile(files.map(|file| includes.join(file)), [&includes]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let fresh = std::fs::read_to_string(out.path().join("comity.v1.rs")).unwrap();
    let committed = here.join("src/gen/comity.v1.rs");
    if std::env::var_os("UPDATE_GEN").is_some() {
        std::fs::write(&committed, &fresh).unwrap();
    }
    assert!(
        std::fs::read_to_string(&committed).unwrap_or_default() == fresh,
        "src/gen is older than the .proto files: run it again with UPDATE_GEN=1"
    );
}
