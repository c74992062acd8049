//! Load from inside a namespace, with every failure counted by its kind.
//!
//! ```no_run
//! # use weir_tests::{Lab, traffic::HttpLoad};
//! # fn main() -> anyhow::Result<()> {
//! # let lab = Lab::builder().build()?;
//! let load = HttpLoad::new(lab.client("c1").netns(), lab.host("n1").targets(8080)).start()?;
//! // ... something happens to the mesh ...
//! load.stop()?.assert_clean();
//! # Ok(())
//! # }
//! ```

mod http;
mod report;
mod udp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::task::LocalSet;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::netns::{Netns, runtime};

pub use http::HttpLoad;
pub use report::{Failure, FailureKind, Report};
pub use udp::UdpLoad;

use report::Tally;

/// What HTTP and UDP load have in common.
#[derive(Debug, Clone)]
struct Shape {
    netns: Netns,
    targets: Vec<SocketAddr>,
    workers: usize,
    requests: Option<u64>,
    rate: Option<u64>,
    timeout: Duration,
}

impl Shape {
    fn new(netns: &Netns, targets: impl IntoIterator<Item = SocketAddr>) -> Self {
        let targets: Vec<_> = targets.into_iter().collect();
        assert!(!targets.is_empty(), "load needs a target");
        let timeout = Duration::from_secs(2);
        Self { netns: netns.clone(), targets, workers: 8, requests: None, rate: None, timeout }
    }
}

/// Load that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    job: Arc<Job>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Running {
    /// What happened so far.
    pub fn report(&self) -> Report {
        self.job.tally().report(self.job.start.elapsed())
    }

    /// Ends the load after the requests in flight, and gives the whole.
    pub fn stop(mut self) -> Result<Report> {
        self.job.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits until the given number of requests is done.
    ///
    /// # Panics
    /// When the load has no number of requests and would never end.
    pub fn wait(mut self) -> Result<Report> {
        assert!(self.job.shape.requests.is_some(), "load without a number of requests: use stop");
        self.join()
    }

    fn join(&mut self) -> Result<Report> {
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the load generator panicked"))??;
        }
        Ok(self.report())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.job.stop.store(true, Ordering::Relaxed);
        let _ = self.join();
    }
}

/// Shared by the workers, which all run on one thread, and the caller.
#[derive(Debug)]
struct Job {
    shape: Shape,
    start: Instant,
    stop: AtomicBool,
    left: AtomicU64,
    tally: Mutex<Tally>,
}

impl Job {
    /// Starts `worker` as many times as the shape says, on one thread in the namespace.
    fn start<W>(shape: Shape, worker: W) -> Result<Running>
    where
        W: AsyncFn(&Job, usize) + Copy + Send + 'static,
    {
        let netns = shape.netns.clone();
        let left = AtomicU64::new(shape.requests.unwrap_or(u64::MAX));
        let (stop, tally) = (AtomicBool::new(false), Mutex::new(Tally::default()));
        let job = Arc::new(Self { shape, start: Instant::now(), stop, left, tally });
        let ours = Arc::clone(&job);
        let thread = netns.thread("load", move || drive(&ours, worker))?;
        Ok(Running { job, thread: Some(thread) })
    }

    /// Takes the right to make one more request.
    fn take(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        !self.stop.load(Ordering::Relaxed)
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    fn target(&self, turn: usize) -> SocketAddr {
        self.shape.targets[turn % self.shape.targets.len()]
    }

    /// The pace of one worker; `None` is as fast as it goes.
    fn pace(&self, worker: usize) -> Option<Interval> {
        let rate = self.shape.rate?.max(1);
        let step = Duration::from_secs(1).mul_f64(self.shape.workers as f64 / rate as f64);
        let offset = step.mul_f64(worker as f64 / self.shape.workers as f64);
        let mut pace = interval_at(tokio::time::Instant::now() + offset, step);
        // Late requests are made up for, else a slow answer would lower the rate unseen.
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        Some(pace)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn success(&self, answer: &str, since: Instant) {
        self.tally().success(answer, since.elapsed());
    }

    fn failure(&self, kind: FailureKind, failure: Attempt, error: String) {
        let Attempt { target, local, since } = failure;
        let at = since.duration_since(self.start);
        self.tally()
            .failure(kind, Failure { kind, at, took: since.elapsed(), target, local, error });
    }
}

/// One request, as far as it is known when it fails.
struct Attempt {
    target: SocketAddr,
    local: Option<SocketAddr>,
    since: Instant,
}

async fn tick(pace: &mut Option<Interval>) {
    if let Some(pace) = pace {
        pace.tick().await;
    }
}

fn drive<W: AsyncFn(&Job, usize) + Copy + 'static>(job: &Arc<Job>, worker: W) -> Result<()> {
    let local = LocalSet::new();
    for index in 0..job.shape.workers {
        let job = Arc::clone(job);
        local.spawn_local(async move { worker(&job, index).await });
    }
    runtime()?.block_on(local);
    Ok(())
}
