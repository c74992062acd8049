//! Of many who ask the same at one time, one asks for all.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{Answered, Forwarder, Question};

type UnderWay = HashMap<Question, watch::Receiver<Option<Answered>>>;

/// Questions under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Flights(Arc<Mutex<UnderWay>>);

/// Takes a question off the list, also when its task is ended from outside.
struct Landing {
    flights: Flights,
    question: Question,
}

impl Flights {
    /// Whether somebody is asking this already.
    pub fn is_under_way(&self, question: &Question) -> bool {
        self.under_way().contains_key(question)
    }

    /// Joins those who ask the same, or begins to ask. `None` when whoever asked has been ended.
    pub fn join(
        &self,
        forwarder: &Arc<Forwarder>,
        question: &Question,
    ) -> impl Future<Output = Option<Answered>> + use<> {
        let mut said = self.board(forwarder, question);
        async move {
            let said = said.wait_for(Option::is_some).await.ok()?;
            said.clone()
        }
    }

    fn board(
        &self,
        forwarder: &Arc<Forwarder>,
        question: &Question,
    ) -> watch::Receiver<Option<Answered>> {
        let mut under_way = self.under_way();
        if let Some(said) = under_way.get(question) {
            return said.clone();
        }
        let (says, said) = watch::channel(None);
        under_way.insert(question.clone(), said.clone());
        let landing = Landing { flights: self.clone(), question: question.clone() };
        let forwarder = forwarder.clone();
        // On its own, so that it goes on when those who asked have gone.
        tokio::spawn(async move {
            let answered = forwarder.fetch(&landing.question).await;
            drop(landing);
            says.send_replace(Some(answered));
        });
        said
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // A map is sound after every one of its steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.under_way().remove(&self.question);
    }
}
