//! What came of the load.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// A reset, or an ICMP port unreachable, in answer to the attempt.
    Refused,
    /// No answer to the connection attempt in time.
    ConnectTimeout,
    /// No (whole) answer in time: for UDP, a lost packet.
    AnswerTimeout,
    /// A reset on a connection that was open.
    Reset,
    /// The connection ended inside an answer, or before the first one.
    Closed,
    /// A connection that had answered before was closed when the next request was sent on it: a
    /// server that ends idle connections does that rightly.
    ClosedWhenReused,
    /// ICMP host or network unreachable, or no route.
    Unreachable,
    /// Something answered, and it was not the expected thing.
    BadAnswer,
    /// A UDP answer came from another address than the one that was asked.
    WrongSource,
    /// We had no port or descriptor left: the generator's limit, not the mesh's.
    OwnLimit,
    /// Any other error.
    Other,
}

impl FailureKind {
    pub(super) fn of(error: &io::Error) -> Self {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            ErrorKind::TimedOut => Self::ConnectTimeout,
            ErrorKind::InvalidData => Self::BadAnswer,
            ErrorKind::AddrNotAvailable => Self::OwnLimit,
            _ if error.raw_os_error() == Some(libc::EMFILE) => Self::OwnLimit,
            _ => Self::Other,
        }
    }
}

/// One failed request, with what is needed to find it in a packet trace.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// When the request began, since the start of the load.
    pub at: Duration,
    /// How long it took to fail.
    pub took: Duration,
    /// Who was asked.
    pub target: SocketAddr,
    /// Our address and port, once we had one.
    pub local: Option<SocketAddr>,
    /// The text of the error.
    pub error: String,
}

/// The result of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests with the right answer.
    pub ok: u64,
    /// The others, by kind.
    pub failed: BTreeMap<FailureKind, u64>,
    /// Right answers by the name of the task that gave them.
    pub by_task: BTreeMap<String, u64>,
    /// Right answers by the client address that the task saw.
    pub by_client: BTreeMap<IpAddr, u64>,
    /// The failure that came first.
    pub first_failure: Option<Failure>,
    /// The failure of the request that began last.
    pub last_failure: Option<Failure>,
    /// Half of the right answers were faster.
    pub p50: Duration,
    /// All but one percent of the right answers were faster.
    pub p99: Duration,
    /// The slowest right answer.
    pub max: Duration,
    /// How long the load has run.
    pub elapsed: Duration,
}

impl Report {
    /// How many requests failed.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// How many failed in this way.
    pub fn failed_by(&self, kind: FailureKind) -> u64 {
        self.failed.get(&kind).copied().unwrap_or(0)
    }

    /// Right answers a second.
    pub fn rate(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// # Panics
    /// When a request failed or none was answered; with the whole report.
    pub fn assert_clean(&self) {
        assert!(self.ok > 0 && self.failures() == 0, "the load was not clean: {self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ok, failures, rate) = (self.ok, self.failures(), self.rate());
        write!(f, "{ok} ok, {failures} failed in {:.1?} ({rate:.0}/s", self.elapsed)?;
        write!(f, ", p50 {:.1?}, p99 {:.1?}, max {:.1?})", self.p50, self.p99, self.max)?;
        for (task, count) in &self.by_task {
            write!(f, ", {task}: {count}")?;
        }
        if failures > 0 {
            write!(f, "; failed: {:?}", self.failed)?;
        }
        if let Some(failure) = &self.first_failure {
            write!(f, "; first: {failure:?}")?;
        }
        match &self.last_failure {
            Some(failure) if failures > 1 => write!(f, "; last: {failure:?}"),
            _ => Ok(()),
        }
    }
}

/// The running count.
#[derive(Debug, Default)]
pub(super) struct Tally {
    ok: u64,
    failed: BTreeMap<FailureKind, u64>,
    by_task: BTreeMap<String, u64>,
    by_client: BTreeMap<IpAddr, u64>,
    first_failure: Option<Failure>,
    last_failure: Option<Failure>,
    /// Microseconds of each right answer.
    latencies: Vec<u32>,
}

impl Tally {
    /// Counts an answer of the form `NAME CLIENT:PORT …`; a part that is missing is not counted.
    pub(super) fn success(&mut self, answer: &str, latency: Duration) {
        self.ok += 1;
        self.latencies.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        let mut words = answer.split_ascii_whitespace();
        if let Some(task) = words.next() {
            match self.by_task.get_mut(task) {
                Some(count) => *count += 1,
                None => drop(self.by_task.insert(task.to_owned(), 1)),
            }
        }
        if let Some(client) = words.next().and_then(|word| word.parse::<SocketAddr>().ok()) {
            *self.by_client.entry(client.ip()).or_default() += 1;
        }
    }

    pub(super) fn failure(&mut self, kind: FailureKind, failure: Failure) {
        *self.failed.entry(kind).or_default() += 1;
        if self.last_failure.as_ref().is_none_or(|last| last.at <= failure.at) {
            self.last_failure = Some(failure.clone());
        }
        self.first_failure.get_or_insert(failure);
    }

    pub(super) fn report(&self, elapsed: Duration) -> Report {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let at = |part: f64| {
            let index = (latencies.len() as f64 * part) as usize;
            let value = latencies.get(index).or(latencies.last()).copied().unwrap_or(0);
            Duration::from_micros(value.into())
        };
        Report {
            ok: self.ok,
            failed: self.failed.clone(),
            by_task: self.by_task.clone(),
            by_client: self.by_client.clone(),
            first_failure: self.first_failure.clone(),
            last_failure: self.last_failure.clone(),
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
            elapsed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind) -> Failure {
        let target = "10.77.0.11:80".parse().unwrap();
        let (at, took) = (Duration::ZERO, Duration::ZERO);
        Failure { kind, at, took, target, local: None, error: "e".into() }
    }

    #[test]
    fn answers_are_counted_by_task_and_by_client() {
        let mut tally = Tally::default();
        tally.success("web.1 10.77.0.101:4001\n", Duration::from_micros(10));
        tally.success("web.1 [fd77::101]:4002\n", Duration::from_micros(20));
        tally.success("web.2 10.77.0.101:4003\n", Duration::from_micros(30));
        let report = tally.report(Duration::from_secs(1));
        assert_eq!((report.ok, report.by_task["web.1"], report.by_task["web.2"]), (3, 2, 1));
        assert_eq!(report.by_client[&"10.77.0.101".parse::<IpAddr>().unwrap()], 2);
        assert_eq!(
            (report.p50, report.max),
            (Duration::from_micros(20), Duration::from_micros(30))
        );
        report.assert_clean();
    }

    #[test]
    fn the_first_failure_is_kept_and_the_one_that_began_last() {
        let mut tally = Tally::default();
        let began = |kind, seconds| Failure { at: Duration::from_secs(seconds), ..failure(kind) };
        tally.failure(FailureKind::Reset, began(FailureKind::Reset, 2));
        tally.failure(FailureKind::Refused, began(FailureKind::Refused, 1));
        let report = tally.report(Duration::from_secs(1));
        assert_eq!(report.failures(), 2);
        assert_eq!(report.failed_by(FailureKind::Reset), 1);
        assert_eq!(report.first_failure.unwrap().kind, FailureKind::Reset);
        assert_eq!(report.last_failure.unwrap().at, Duration::from_secs(2));
    }
}
