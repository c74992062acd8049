//! The kernel object that this build carries.

use aya::{Ebpf, EbpfLoader, include_bytes_aligned};

use crate::{
    Options,
    error::{Error, Tried as _},
};

/// The programs, as committed. `make ebpf` rebuilds them.
static OBJECT: &[u8] = include_bytes_aligned!("../object/weir.bpf.o");

/// SHA-256 of the kernel objects that this build carries, `weir.bpf.o` and `lookup.bpf.o` one after the other,
/// in hexadecimal.
pub fn object_digest() -> &'static str {
    env!("WEIR_OBJECT_DIGEST")
}

/// Parses the object and creates its maps, or opens those that an earlier agent pinned.
pub(crate) fn load(options: &Options) -> Result<Ebpf, Error> {
    let capacity = options.flow_capacity.unwrap_or_else(default_flow_capacity);
    let maps = options.maps_dir();
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(&maps);
    for name in ["FORWARD4", "FORWARD6", "REVERSE4", "REVERSE6"] {
        loader.map_max_entries(name, capacity);
    }
    loader.load(OBJECT).map_err(|error| explain(&error))
}

/// A 200th of the host's memory, at most half a million flows a table: the four flow tables take
/// about 520 bytes for each of their positions.
fn default_flow_capacity() -> u32 {
    const BYTES_A_FLOW: u64 = 520;
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .unwrap_or(1 << 20);
    let flows = total * 1024 / 200 / BYTES_A_FLOW;
    (flows as u32)
        .clamp(1 << 14, weir_abi::size::FLOWS)
        .next_power_of_two()
        .min(weir_abi::size::FLOWS)
}

fn explain(error: &aya::EbpfError) -> Error {
    let failed = Error::new("create the maps", chain(error));
    if chain(error).contains("Operation not permitted") || chain(error).contains("os error 1)") {
        return failed.remedy(
            "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN; in a container also \
             without a seccomp profile that forbids bpf(2)",
        );
    }
    if chain(error).contains("os error 12)") {
        return failed.remedy(
            "the kernel has no memory for them: set dataplane.flow_capacity to a smaller number, \
             or raise RLIMIT_MEMLOCK on kernels before 5.11",
        );
    }
    failed
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Loads programs into the kernel: those that are wanted.
pub(crate) fn verify(object: &mut Ebpf, wanted: impl Fn(&str) -> bool) -> Result<(), Error> {
    use aya::programs::Program;
    let names: Vec<String> =
        object.programs().map(|(name, _)| name.to_owned()).filter(|name| wanted(name)).collect();
    for name in names {
        let what = || format!("load the program {name}");
        let Some(program) = object.program_mut(&name) else { continue };
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => continue,
        };
        loaded.map_err(|error| brief(&chain(&error))).tried(what).map_err(|error| {
            error.remedy(
                "the kernel refuses it: `weir check` says what it lacks; weir needs Linux 5.18 or \
                 later",
            )
        })?;
    }
    Ok(())
}

/// The verifier's log is thousands of lines; its end says why.
fn brief(text: &str) -> String {
    const END: usize = 600;
    match text.char_indices().rev().nth(END) {
        Some((from, _)) => format!("… {}", &text[from..]),
        None => text.to_owned(),
    }
}
