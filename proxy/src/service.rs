//! What is known of a service on this node, whichever port or route a flow comes by.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use weir_mesh::proxied::Proxied;

use crate::counters::Reason;

/// One service.
#[derive(Debug)]
pub(crate) struct Service {
    /// What it asks for.
    pub(crate) wishes: ArcSwap<Proxied>,
    /// Whose turn it is.
    pub(crate) turn: AtomicU32,
    connections: AtomicU32,
    clients: Mutex<HashMap<IpAddr, u32>>,
    bucket: Mutex<Bucket>,
}

/// A TCP connection that counts against the limits of its service until it is dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    service: Arc<Service>,
    /// Only if there is a limit for each.
    client: Option<IpAddr>,
}

/// New connections that may come now: refilled as time passes, at most for one second.
#[derive(Debug)]
struct Bucket {
    left: f64,
    filled: Instant,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            wishes: ArcSwap::default(),
            turn: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            clients: Mutex::default(),
            bucket: Mutex::new(Bucket { left: 1.0, filled: Instant::now() }),
        }
    }
}

impl Service {
    /// Lets a client in, or says which limit is reached.
    pub(crate) fn admit(self: &Arc<Self>, client: IpAddr) -> Result<Admission, Reason> {
        let limits = self.wishes.load().limits;
        if limits.rate.is_some_and(|rate| !lock(&self.bucket).take(rate, Instant::now())) {
            return Err(Reason::LimitRate);
        }
        let admission =
            Admission { service: self.clone(), client: limits.per_client.map(|_| client) };
        let before = self.connections.fetch_add(1, Relaxed);
        let of_client = admission.client.map(|client| {
            let mut clients = lock(&self.clients);
            let count = clients.entry(client).or_default();
            *count += 1;
            *count
        });
        // What is too many goes again with the admission.
        if limits.connections.is_some_and(|most| before >= most) {
            return Err(Reason::LimitService);
        }
        if limits.per_client.zip(of_client).is_some_and(|(most, count)| count > most) {
            return Err(Reason::LimitClient);
        }
        Ok(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.service.connections.fetch_sub(1, Relaxed);
        let Some(client) = self.client else { return };
        let mut clients = lock(&self.service.clients);
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }
}

impl Bucket {
    fn take(&mut self, rate: u32, now: Instant) -> bool {
        let rate = f64::from(rate);
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * rate).min(rate);
        self.filled = now;
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weir_mesh::proxied::FlowLimits;

    use super::*;

    fn service(limits: FlowLimits) -> Arc<Service> {
        let service = Service::default();
        service.wishes.store(Arc::new(Proxied { limits, ..Proxied::default() }));
        Arc::new(service)
    }

    #[test]
    fn a_service_has_no_more_connections_than_it_may_and_room_again_when_one_ends() {
        let service = service(FlowLimits { connections: Some(2), ..FlowLimits::default() });
        let ip = IpAddr::from([10, 0, 0, 1]);
        let first = service.admit(ip).unwrap();
        let _second = service.admit(ip).unwrap();
        assert_eq!(service.admit(ip).unwrap_err(), Reason::LimitService);
        assert_eq!(service.admit(ip).unwrap_err(), Reason::LimitService);
        drop(first);
        service.admit(ip).unwrap();
    }

    #[test]
    fn one_client_at_its_limit_does_not_keep_another_out() {
        let service = service(FlowLimits { per_client: Some(1), ..FlowLimits::default() });
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = service.admit(one).unwrap();
        assert_eq!(service.admit(one).unwrap_err(), Reason::LimitClient);
        let _other = service.admit(other).unwrap();
        drop(first);
        service.admit(one).unwrap();
        assert_eq!(lock(&service.clients).len(), 1, "who has none is forgotten");
    }

    #[test]
    fn a_rate_lets_a_second_s_worth_through_at_once_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket { left: 1.0, filled: start };
        assert!(bucket.take(10, start));
        assert!(!bucket.take(10, start));
        let later = start + Duration::from_secs(60);
        let taken = (0..100).filter(|_| bucket.take(10, later)).count();
        assert_eq!(taken, 10);
        assert!(bucket.take(10, later + Duration::from_millis(101)));
    }
}
