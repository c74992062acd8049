//! Asking several servers: the next one as soon as one fails, or has said nothing for a while.

use std::{sync::Arc, time::Instant};

use hickory_proto::op::Message;
use tokio::{
    task::JoinSet,
    time::{Instant as TokioInstant, sleep_until},
};

use super::{
    Question, Settings,
    exchange::{Failure, exchange},
    routes::Upstream,
};

/// Nobody has answered.
#[derive(Debug)]
pub(super) struct Nobody;

/// Every server is asked at most so often.
const ROUNDS: usize = 2;

/// The first answer that is one. Servers that did not answer lately come last; one whose time to be
/// tried again has come is asked beside the first, so that nobody waits for it.
pub(super) async fn race(
    upstreams: &[Arc<Upstream>],
    question: &Question,
    settings: &Settings,
) -> Result<Message, Nobody> {
    let now = Instant::now();
    let mut order = upstreams.to_vec();
    order.sort_by_key(|upstream| upstream.is_down(now));
    let tried = order.iter().find(|upstream| upstream.take_trial(now)).cloned();
    let mut queue = std::iter::repeat_n(order, ROUNDS).flatten();
    let deadline = TokioInstant::now() + settings.deadline;
    let mut asked = JoinSet::new();
    if let Some(tried) = tried {
        ask(&mut asked, tried, question);
    }
    let mut last = None;
    let mut next = queue.next();
    loop {
        match next.take() {
            Some(upstream) => {
                last = Some(upstream.clone());
                ask(&mut asked, upstream, question);
            }
            None if asked.is_empty() => return Err(Nobody),
            None => {}
        }
        next = queue.next();
        let patience = match next {
            Some(_) => (TokioInstant::now() + settings.failover).min(deadline),
            None => deadline,
        };
        // Until somebody fails or the patience is over.
        loop {
            tokio::select! {
                said = asked.join_next(), if !asked.is_empty() => match said {
                    Some(Ok(Ok(message))) => {
                        // What the others do is still worth knowing.
                        asked.detach_all();
                        return Ok(message);
                    }
                    Some(_) if next.is_some() || asked.is_empty() => break,
                    _ => {}
                },
                () = sleep_until(patience) => {
                    last.iter().for_each(|upstream| upstream.suspect());
                    if TokioInstant::now() >= deadline {
                        asked.detach_all();
                        return Err(Nobody);
                    }
                    break;
                }
            }
        }
    }
}

fn ask(
    asked: &mut JoinSet<Result<Message, Failure>>,
    upstream: Arc<Upstream>,
    question: &Question,
) {
    let question = question.clone();
    asked.spawn(async move {
        let begun = Instant::now();
        let said = exchange(upstream.address, &question).await;
        upstream.judge(&said, begun.elapsed());
        said
    });
}
