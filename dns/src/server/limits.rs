//! How much may be under way at one time, in total and for each client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Settings;
use crate::counters::Drop as Why;

/// Counts what is under way.
#[derive(Debug)]
pub struct Limits {
    questions: Mutex<Taken>,
    connections: Mutex<Taken>,
    most_questions: Most,
    most_connections: Most,
}

/// How much is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsRead {
    /// Questions that others are being asked.
    pub questions: usize,
    /// Connections.
    pub connections: usize,
}

#[derive(Clone, Copy, Debug)]
struct Most {
    total: usize,
    of_client: usize,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Question,
    Connection,
}

/// A place that is taken until this goes.
#[derive(Debug)]
pub(super) struct Permit {
    limits: Arc<Limits>,
    client: IpAddr,
    kind: Kind,
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            questions: Mutex::default(),
            connections: Mutex::default(),
            most_questions: Most {
                total: settings.under_way,
                of_client: settings.under_way_of_client,
            },
            most_connections: Most {
                total: settings.connections,
                of_client: settings.connections_of_client,
            },
        }
    }

    /// A place for a question that others are asked.
    pub(super) fn question(self: &Arc<Self>, client: IpAddr) -> Result<Permit, Why> {
        self.take(client, Kind::Question)
    }

    /// A place for a connection.
    pub(super) fn connection(self: &Arc<Self>, client: IpAddr) -> Result<Permit, Why> {
        self.take(client, Kind::Connection).map_err(|_| Why::Connections)
    }

    /// Whether most places for connections are taken.
    pub(super) fn is_crowded(&self) -> bool {
        self.taken(Kind::Connection).total * 4 > self.most_connections.total * 3
    }

    /// What is under way.
    pub fn read(&self) -> LimitsRead {
        let [questions, connections] =
            [Kind::Question, Kind::Connection].map(|kind| self.taken(kind).total);
        LimitsRead { questions, connections }
    }

    fn take(self: &Arc<Self>, client: IpAddr, kind: Kind) -> Result<Permit, Why> {
        let most = match kind {
            Kind::Question => self.most_questions,
            Kind::Connection => self.most_connections,
        };
        let mut taken = self.taken(kind);
        if taken.total >= most.total {
            return Err(Why::Busy);
        }
        let own = taken.by_client.entry(client).or_default();
        if *own >= most.of_client {
            return Err(Why::ClientBusy);
        }
        *own += 1;
        taken.total += 1;
        Ok(Permit { limits: self.clone(), client, kind })
    }

    fn taken(&self, kind: Kind) -> MutexGuard<'_, Taken> {
        let taken = match kind {
            Kind::Question => &self.questions,
            Kind::Connection => &self.connections,
        };
        // The counts are sound after every one of their steps.
        taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.limits.taken(self.kind);
        taken.total = taken.total.saturating_sub(1);
        if let Some(own) = taken.by_client.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_for_each_client_and_in_total_and_come_back() {
        let settings = Settings { under_way: 3, under_way_of_client: 2, ..Settings::default() };
        let limits = Arc::new(Limits::new(&settings));
        let [first, second] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let held: Vec<Permit> = (0..2).map(|_| limits.question(first).unwrap()).collect();
        assert_eq!(limits.question(first).unwrap_err(), Why::ClientBusy);
        let other = limits.question(second).unwrap();
        assert_eq!(limits.question(second).unwrap_err(), Why::Busy);
        drop((held, other));
        assert_eq!(limits.read().questions, 0);
        assert!(limits.question(second).is_ok());
    }
}
