//! What a program without MPI says to those who start several of it.
#![cfg(not(feature = "mpi"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may end by them

mod common;

use common::unif2ace;

#[test]
fn one_of_several_ranks_is_refused_before_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = common::root().join("recipes/mini/face.toml");
    let output = unif2ace()
        .args(["train", common::text(&recipe), "--data", common::text(folder.path())])
        .env("OMPI_COMM_WORLD_SIZE", "2")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("OMPI_COMM_WORLD_SIZE") && said.contains("hint: build with `cargo build --release --features mpi`"),
        "{said}"
    );
}
