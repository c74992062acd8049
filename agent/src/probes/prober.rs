//! Asks tasks again and again, spread in time, not too many at once.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
    time,
};
use weir_mesh::{Ident, health::Check};

use super::{Finding, Purpose, Target, Targets, ask::ask};

type Key = (Ident, Purpose);

/// Probes at once.
const AT_ONCE: usize = 64;
/// A task that has never been healthy is asked this often, if its interval is not shorter: it is to
/// serve soon after it can.
const EAGER: Duration = Duration::from_millis(500);

/// Follows the list of targets until its writer ends, and reports what each probe found.
pub async fn run(mut targets: watch::Receiver<Targets>, findings: mpsc::Sender<Finding>) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = BTreeMap::<Key, Asking>::new();
    loop {
        let wanted = targets.borrow_and_update().clone();
        running
            .retain(|task, asking| wanted.get(task).is_some_and(|new| new.is_like(&asking.target)));
        for (task, target) in wanted.iter() {
            if running.contains_key(task) {
                continue;
            }
            let work = again_and_again(
                *task,
                target.clone(),
                targets.clone(),
                permits.clone(),
                findings.clone(),
            );
            let handle = tokio::spawn(work).abort_handle();
            running.insert(*task, Asking { target: target.clone(), handle });
        }
        if targets.changed().await.is_err() {
            return;
        }
    }
}

struct Asking {
    target: Target,
    handle: AbortHandle,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Target {
    /// Whether one is asked as the other is.
    fn is_like(&self, other: &Self) -> bool {
        (&self.addresses, &self.check) == (&other.addresses, &other.check)
    }
}

async fn again_and_again(
    key: Key,
    target: Target,
    targets: watch::Receiver<Targets>,
    permits: Arc<Semaphore>,
    findings: mpsc::Sender<Finding>,
) {
    let (task, purpose) = key;
    let Target { addresses, check, known } = target;
    // A new task waits for its first probes. The others begin anywhere in their interval.
    let patience = if known { check.interval } else { EAGER.min(check.interval) / 4 };
    time::sleep(share_of(patience, task)).await;
    loop {
        let started = time::Instant::now();
        let found = {
            let Ok(_permit) = permits.acquire().await else { return };
            ask_all(&addresses, &check).await
        };
        if findings.send(Finding::Probed(task, purpose, found)).await.is_err() {
            return;
        }
        let known = targets.borrow().get(&key).is_some_and(|target| target.known);
        let pause = if known { check.interval } else { EAGER.min(check.interval) };
        time::sleep_until(started + pause).await;
    }
}

/// The first problem, if there is one at any of the addresses.
async fn ask_all(addresses: &[SocketAddr], check: &Check) -> Result<(), String> {
    for address in addresses {
        ask(*address, check).await?;
    }
    Ok(())
}

/// A part of a time that differs from task to task.
fn share_of(time: Duration, task: Ident) -> Duration {
    time.mul_f64(f64::from(task.fold()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use weir_mesh::health::CheckKind;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn targets_are_asked_at_their_interval_until_they_leave_the_list() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let check = Check { interval: INTERVAL, ..Check::new(CheckKind::Tcp) };
        let target = Target { addresses: vec![listener.local_addr().unwrap()], check, known: true };
        let task = Ident(7);
        let (list, targets) =
            watch::channel(Targets::new([((task, Purpose::Check), target.clone())].into()));
        let (findings, mut found) = mpsc::channel(100);
        tokio::spawn(run(targets, findings));
        let started = time::Instant::now();
        for _ in 0..4 {
            assert_eq!(found.recv().await, Some(Finding::Probed(task, Purpose::Check, Ok(()))));
        }
        assert!(started.elapsed() >= 3 * INTERVAL);
        list.send_replace(Targets::default());
        time::sleep(INTERVAL).await;
        while found.try_recv().is_ok() {}
        time::sleep(3 * INTERVAL).await;
        assert!(found.try_recv().is_err(), "nobody asks any more");
        drop(list);
    }

    #[test]
    fn tasks_are_spread_over_their_interval() {
        let shares: Vec<u64> = (0..1000_u64)
            .map(|number| Ident(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .map(|task| share_of(Duration::from_secs(1), task).as_millis() as u64)
            .collect();
        for tenth in 0..10_u64 {
            let within = tenth * 100..(tenth + 1) * 100;
            let count = shares.iter().filter(|share| within.contains(*share)).count();
            assert!((50..200).contains(&count), "{count} in {within:?}");
        }
    }
}
