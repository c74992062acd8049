//! What a process uses, by `/proc`.

use std::fs;

use weir_tests::process::status_kib;

/// Resident memory in MB.
pub fn resident(pid: u32) -> u64 {
    status_kib(pid, "VmRSS").unwrap_or(0) / 1024
}

/// Seconds of processor time, user and system.
pub fn processor(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime: fields 14 and 15, of which the name is the second. Ticks are 1/100 s.
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The machine's load average over a minute.
pub fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or("").into()
}
