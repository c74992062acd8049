//! What this build is: `weir version`, `weir_build_info`.

/// The version of the release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, with `-dirty` where the tree had changes: what `WEIR_COMMIT` said when it was
/// built, as `make release` and `make image` set it; else `unknown`.
pub const COMMIT: &str = match option_env!("WEIR_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// SHA-256 of the kernel objects in it, in hexadecimal: `cat weir.bpf.o lookup.bpf.o | sha256sum`.
pub fn kernel_object() -> &'static str {
    weir_loader::object_digest()
}
