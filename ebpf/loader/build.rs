//! Hands the digest of the committed kernel object to the crate. Building the object takes a toolchain
//! that users do not have: see `make ebpf`. Whether it is what the sources beside it give,
//! `ebpf/build.sh --check` says.

use std::{env, fs, path::Path};

use sha2::{Digest as _, Sha256};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let object = Path::new(&manifest).join("object/weir.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_else(|error| {
        panic!("cannot read the kernel object {}: {error}; `make ebpf` builds it", object.display())
    });
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=WEIR_OBJECT_DIGEST={digest}");
}
