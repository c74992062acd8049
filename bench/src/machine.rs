//! What the figures were measured on, and how busy it was.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result};

/// One line about the machine: kernel, processors, load of the last minute.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |text| text.trim_start_matches([' ', '\t', ':']));
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("kernel {kernel}, {cpus} x {model}, load average {}, {}", load_average(), today())
}

/// How many processes wanted to run in the last minute, on average.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

fn today() -> String {
    let output = Command::new("date").arg("+%F %R %Z").output();
    output.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).trim().into())
}

/// Microseconds that all processors have been busy since the start of the machine, for whatever
/// reason; time that the hypervisor took is not ours.
pub fn busy_microseconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    busy_jiffies(&text).map(|jiffies| jiffies * 10_000.0).context("no cpu line in /proc/stat")
}

/// Lets everybody else of this machine go before the calling thread.
pub fn stand_back() {
    // SAFETY: takes numbers. 0: this thread (setpriority(2), "C library/kernel differences").
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// What a process has worked, whoever else had the processors; counted in hundredths of a second.
///
/// # Errors
/// When there is no such process.
pub fn worked(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc_pid_stat(5): utime and stime are the 14th and 15th; the name before them may hold anything.
    let after_name = text.rsplit(')').next().context("no name")?;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(ticks.sum::<Result<u64, _>>()? * 10))
}

/// user, nice, system, irq and softirq of the first line (proc(5)).
fn busy_jiffies(stat: &str) -> Option<f64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<f64> = line.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    let at = |index: usize| fields.get(index);
    Some(at(0)? + at(1)? + at(2)? + at(5)? + at(6)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_busy() {
        let stat = "cpu  1 2 4 1000 1000 8 16 1000 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_jiffies(stat), Some(31.0));
    }
}
