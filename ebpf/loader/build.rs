//! Hands the digest of the committed kernel objects to the crate. Building the objects takes a toolchain
//! that users do not have: see `make ebpf`. Whether they are what the sources beside them give,
//! `ebpf/build.sh --check` says.

use std::{env, fs, path::Path};

use sha2::{Digest as _, Sha256};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut digest = Sha256::new();
    for name in ["weir.bpf.o", "lookup.bpf.o"] {
        let object = Path::new(&manifest).join("object").join(name);
        println!("cargo::rerun-if-changed={}", object.display());
        digest.update(fs::read(&object).unwrap_or_else(|error| {
            let object = object.display();
            panic!("cannot read the kernel object {object}: {error}; `make ebpf` builds it")
        }));
    }
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=WEIR_OBJECT_DIGEST={digest}");
}
