//! `dnsperf`, and what it reports.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use weir_tests::interrupt;

use super::{Case, Forwarded, Server, unheard};

/// One run of dnsperf.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// What is asked.
    pub case: Case,
    /// Queries a second; `None`: as many as there can be.
    pub rate: Option<u32>,
    /// How long.
    pub time: Duration,
    /// Where the questions are.
    pub files: &'a Path,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Queries that were answered.
    pub answered: f64,
    /// Answers a second.
    pub rate: f64,
    /// Microseconds of processor time of the server for each.
    pub cpu: f64,
    /// Percent without an answer.
    pub lost: f64,
    /// Percent with another code than they must have.
    pub wrong: f64,
    /// Half of all answers took no longer, in microseconds. Only with a fixed rate.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
}

/// Names of a forwarded run without a limit: more than any server answers.
const MOST_A_SECOND: u32 = 60_000;

impl Run<'_> {
    /// Asks a server.
    ///
    /// # Errors
    /// Also when somebody wants the bench to end.
    pub fn on(&self, server: &Server) -> Result<Seen> {
        interrupt::go_on()?;
        let before = server.cpu()?;
        let mut seen = self.dnsperf(server)?;
        // Children of dnsmasq end when their connection does.
        std::thread::sleep(Duration::from_millis(if self.case.tcp { 300 } else { 5 }));
        seen.cpu = (server.cpu()? - before) / seen.answered.max(1.0) * 1e6;
        Ok(seen)
    }

    fn dnsperf(&self, server: &Server) -> Result<Seen> {
        let file = match self.case.forwarded {
            Forwarded::Always => {
                let count =
                    u64::from(self.rate.unwrap_or(MOST_A_SECOND)) * (self.time.as_secs() + 1);
                unheard(self.files, usize::try_from(count)?)?
            }
            _ => self.case.file.to_owned(),
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = Command::new("taskset");
        // Not where the server is.
        command.arg("-c").arg(if cpus > 1 { format!("1-{}", cpus - 1) } else { "0".to_owned() });
        command.args([
            "dnsperf",
            "-s",
            "127.0.0.1",
            "-c",
            "4",
            "-T",
            "1",
            "-e",
            "-O",
            "suppress=timeout",
        ]);
        command
            .arg("-p")
            .arg(server.port.to_string())
            .arg("-l")
            .arg(self.time.as_secs().to_string());
        command.arg("-d").arg(self.files.join(file));
        if self.case.tcp {
            command.args(["-m", "tcp"]);
        }
        if let Some(rate) = self.rate {
            // Every answer is reported, with its time.
            command.args(["-v", "-q", "2000", "-Q", &rate.to_string()]);
        }
        let complaints = self.files.join("dnsperf.stderr");
        let errors = File::create(&complaints)?;
        let child = command.stdout(Stdio::piped()).stderr(errors).spawn();
        let mut child = child.context("dnsperf or taskset is not installed")?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        let mut report = Report::default();
        for line in out.lines() {
            report.take(&line?);
        }
        let ended = child.wait()?;
        report.seen(self.case.code).with_context(|| {
            let said = fs::read_to_string(&complaints).unwrap_or_default();
            format!("dnsperf against {:?}, tcp: {}, {ended}: {said}", server.kind, self.case.tcp)
        })
    }
}

#[derive(Default)]
struct Report {
    /// Seconds of every answer.
    times: Vec<f32>,
    sent: Option<f64>,
    completed: Option<f64>,
    seconds: Option<f64>,
    codes: Vec<(String, f64)>,
}

impl Report {
    fn take(&mut self, line: &str) {
        // `> NOERROR s1.weir A 0.000123`
        if let Some(answer) = line.strip_prefix("> ") {
            let took: Option<f32> = answer.rsplit(' ').next().and_then(|text| text.parse().ok());
            self.times.extend(took);
            return;
        }
        let line = line.trim();
        let number = |title: &str| -> Option<f64> {
            line.strip_prefix(title)?.split_whitespace().next()?.parse().ok()
        };
        self.sent = self.sent.or_else(|| number("Queries sent:"));
        self.completed = self.completed.or_else(|| number("Queries completed:"));
        self.seconds = self.seconds.or_else(|| number("Run time (s):"));
        // `NOERROR 59990 (99.98%), SERVFAIL 10 (0.02%)`
        if let Some(codes) = line.strip_prefix("Response codes:") {
            let code = |part: &str| {
                let mut words = part.split_whitespace();
                Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
            };
            self.codes = codes.split(',').filter_map(code).collect();
        }
    }

    fn seen(mut self, code: &str) -> Result<Seen> {
        let sent = self.sent.context("dnsperf reports no \"Queries sent\"")?;
        let answered = self.completed.context("dnsperf reports no \"Queries completed\"")?;
        let seconds = self.seconds.context("dnsperf reports no \"Run time\"")?;
        let right: f64 =
            self.codes.iter().filter(|(own, _)| own == code).map(|(_, count)| count).sum();
        self.times.sort_by(f32::total_cmp);
        let percentile = |part: f64| {
            let at = (self.times.len() as f64 * part) as usize;
            self.times.get(at).map_or(f64::NAN, |time| f64::from(*time) * 1e6)
        };
        Ok(Seen {
            answered,
            rate: answered / seconds,
            cpu: f64::NAN,
            lost: 100.0 * (sent - answered) / sent.max(1.0),
            wrong: 100.0 * (answered - right) / answered.max(1.0),
            p50: percentile(0.5),
            p99: percentile(0.99),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dnsperf_says_is_read() {
        let mut report = Report::default();
        for line in [
            "> NOERROR s1.weir A 0.000100",
            "> T s2.weir A",
            "> SERVFAIL s3.weir A 0.000300",
            "  Queries sent:         4",
            "  Queries completed:    2 (50.00%)",
            "  Queries lost:         2 (50.00%)",
            "  Response codes:       NOERROR 1 (50.00%), SERVFAIL 1 (50.00%)",
            "  Run time (s):         2.000000",
        ] {
            report.take(line);
        }
        let seen = report.seen("NOERROR").unwrap();
        assert_eq!((seen.rate, seen.lost, seen.wrong), (1.0, 50.0, 50.0));
        assert!((seen.p99 - 300.0).abs() < 0.01 && (seen.p50 - 300.0).abs() < 0.01, "{seen:?}");
    }
}
