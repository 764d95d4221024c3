//! Compiles the protobuf files without `protoc`, and keeps their descriptors for server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const OWN: [&str; 5] = [
    "shardkv/v1/kv.proto",
    "shardkv/v1/admin.proto",
    "shardkv/v1/raft.proto",
    "shardkv/v1/shardctrler.proto",
    "shardkv/v1/keyspaces.proto",
];

const ETCD: [&str; 8] = [
    "etcd/kv.proto",
    "etcd/watch.proto",
    "etcd/lease.proto",
    "etcd/cluster.proto",
    "etcd/maintenance.proto",
    "etcd/auth.proto",
    "etcd/lock.proto",
    "etcd/election.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    compile(&OWN, "descriptors.bin")?;
    compile(&ETCD, "etcd_descriptors.bin")
}

fn compile(files: &[&str], descriptors_file: &str) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join(descriptors_file), descriptors.encode_to_vec())?;
    // Byte fields share the receive buffer's memory instead of being copied out of it.
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
