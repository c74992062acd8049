//! What the kernel says of itself, asked by running the `probe` program.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{Program, SchedClassifier, TestRun as _, TestRunOptions},
};
use weir_abi::probe;

use crate::{
    error::{Error, Tried as _},
    records::Clock,
};

/// A packet long enough for `BPF_PROG_TEST_RUN`: an Ethernet header and more.
const PACKET: usize = 64;

/// Jiffies a second. The kernel tells nobody, so its clock is compared with ours; every kernel is
/// built with one of four rates (`kernel/Kconfig.hz`).
pub(crate) fn clock(object: &Ebpf) -> Result<Clock, Error> {
    let begin = (Instant::now(), ask(object, probe::JIFFIES)?);
    sleep(Duration::from_millis(50));
    let end = (Instant::now(), ask(object, probe::JIFFIES)?);
    let jiffies = f64::from(end.1.wrapping_sub(begin.1) & 0x7fff_ffff);
    let rate = jiffies / (end.0 - begin.0).as_secs_f64();
    let hz = [100u32, 250, 300, 1000]
        .into_iter()
        .min_by(|a, b| (f64::from(*a) - rate).abs().total_cmp(&(f64::from(*b) - rate).abs()))
        .unwrap_or(250);
    Ok(Clock { hz })
}

/// The low 31 bits of jiffies.
pub(crate) fn jiffies(object: &Ebpf) -> Result<u32, Error> {
    ask(object, probe::JIFFIES).map(|answer| answer as u32)
}

/// `BPF_F_IPV6` if `bpf_l4_csum_replace` takes it, else 0.
pub(crate) fn csum_ipv6_flag(object: &Ebpf) -> Result<u32, Error> {
    let knows = ask(object, probe::CSUM_IPV6)? == 0;
    Ok(if knows { probe::BPF_F_IPV6 as u32 } else { 0 })
}

fn ask(object: &Ebpf, question: u8) -> Result<i32, Error> {
    let what = || "ask the kernel by a test run".to_owned();
    let Some(Program::SchedClassifier(program)) = object.program("probe") else {
        return Err(Error::new(what(), "the object has no program probe"));
    };
    run(program, question).tried(what)
}

fn run(program: &SchedClassifier, question: u8) -> Result<i32, aya::programs::ProgramError> {
    let mut packet = [0u8; PACKET];
    packet[0] = question;
    let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::new() };
    program.test_run(options).map(|result| result.return_value as i32)
}
