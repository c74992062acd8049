//! Reads what the kernel counted of this node's tasks: how many connections they took and refused.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use tokio::{sync::mpsc, time};
use weir_loader::Answers;
use weir_mesh::{
    Ident,
    health::Seen,
    install::{BackendGeneration, BackendIndex},
};

use super::Finding;
use crate::reconciler::{TaskAnswers, thread::Handle};

/// So often they are read. A task that stops listening is ejected so much later at most.
const INTERVAL: Duration = Duration::from_millis(250);

/// Reads until the reconciler or whoever is told has ended.
pub async fn run(reconciler: Handle, findings: mpsc::Sender<Finding>) {
    let mut tally = Tally::default();
    let mut complained = false;
    let mut clock = time::interval(INTERVAL);
    clock.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let seen = match reconciler.answers().await {
            Ok(answers) => {
                complained = false;
                tally.news(answers)
            }
            Err(crate::reconciler::thread::AskError::Gone) => return,
            Err(error) => {
                if !complained {
                    tracing::warn!(%error, "cannot read what tasks refuse");
                }
                complained = true;
                continue;
            }
        };
        if !seen.is_empty() && findings.send(Finding::Seen(seen)).await.is_err() {
            return;
        }
    }
}

/// What was read last.
#[derive(Debug, Default)]
struct Tally {
    /// `None` before the first reading: what was counted before is no news.
    last: Option<BTreeMap<(BackendIndex, BackendGeneration), Answers>>,
}

impl Tally {
    /// What was added since the last time, by task. A task may have several places in the kernel,
    /// while an earlier use of it drains.
    fn news(&mut self, answers: Vec<TaskAnswers>) -> Vec<(Ident, Seen)> {
        let mut fresh = BTreeMap::new();
        let mut news = BTreeMap::<Ident, Seen>::new();
        for TaskAnswers { index, generation, task, answers } in answers {
            fresh.insert((index, generation), answers);
            let Some(last) = &self.last else { continue };
            // A place that was not there before began at zero.
            let before = last.get(&(index, generation)).copied().unwrap_or_default();
            let seen = Seen {
                accepted: answers.accepted.saturating_sub(before.accepted),
                refused: answers.refused.saturating_sub(before.refused),
            };
            if seen == Seen::default() {
                continue;
            }
            match news.entry(task) {
                Entry::Vacant(place) => drop(place.insert(seen)),
                Entry::Occupied(mut known) => {
                    known.get_mut().accepted += seen.accepted;
                    known.get_mut().refused += seen.refused;
                }
            }
        }
        self.last = Some(fresh);
        news.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(index: u32, generation: u16, task: u64, accepted: u64, refused: u64) -> TaskAnswers {
        TaskAnswers {
            index: BackendIndex(index),
            generation: BackendGeneration(generation),
            task: Ident(task),
            answers: Answers { accepted, refused },
        }
    }

    #[test]
    fn only_what_was_counted_since_the_last_reading_is_news() {
        let mut tally = Tally::default();
        assert_eq!(tally.news(vec![read(1, 1, 7, 100, 50)]), [], "from before the agent began");
        assert_eq!(tally.news(vec![read(1, 1, 7, 100, 50)]), []);
        let seen = Seen { accepted: 1, refused: 3 };
        assert_eq!(tally.news(vec![read(1, 1, 7, 101, 53)]), [(Ident(7), seen)]);
    }

    #[test]
    fn a_place_that_is_used_anew_begins_at_zero_and_places_of_one_task_add_up() {
        let mut tally = Tally::default();
        tally.news(vec![read(1, 1, 7, 0, 50)]);
        let seen = Seen { accepted: 0, refused: 3 };
        assert_eq!(tally.news(vec![read(1, 2, 8, 0, 3)]), [(Ident(8), seen)]);
        let seen = Seen { accepted: 0, refused: 5 };
        let news = tally.news(vec![read(1, 2, 8, 0, 4), read(2, 1, 8, 0, 4)]);
        assert_eq!(news, [(Ident(8), seen)]);
    }
}
