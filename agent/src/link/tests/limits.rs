//! What a node with a good certificate and bad intentions can do to the others: nothing much. One test
//! for each limit of docs/security.md.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use weir_mesh::cluster::{Life, NodeId, ReportedNode, TaskId};

use super::{
    lies::{Guest, manager, said_by},
    pki::{Authority, Leaf, TestNode, eventually, report},
};
use crate::link::{
    hub::{MOST_SAID, MOST_TASKS},
    stream::End,
    wire::{Head, Item, MOST_ITEM, PATH, Span},
};

/// A task with a label of so many bytes.
fn heavy(node: &str, task: usize, bytes: usize) -> Item {
    let mut value = report(&[("t", Life::Active)]).tasks.into_values().next().expect("one");
    let labels = &mut Arc::make_mut(&mut value).labels;
    labels.insert("weir.note".into(), "x".repeat(bytes));
    Item::Report(NodeId::new(node), TaskId::new(format!("t{task}")), Some(value))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_reports_too_many_bytes_is_refused_and_nothing_of_it_stays() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    let size = 100_000;
    for at in 0..=MOST_SAID / size {
        guest.part(at as u64, at == 0, vec![heavy("w1", at, size)]).await;
    }
    let reason = guest.refused().await;
    assert!(reason.contains("w1 reports more than 10000 tasks, or more than 8 MiB"), "{reason}");
    // Added one by one, it is the same.
    tokio::time::sleep(Duration::from_millis(5100)).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    guest.say(0, 2, true, said_by("w1", "t1", Life::Active)).await;
    for at in 0..=MOST_SAID / size {
        let at = at as u64;
        guest.say(2 + at, 3 + at, false, vec![heavy("w1", at as usize, size)]).await;
    }
    let reason = guest.refused().await;
    assert!(reason.contains("more than 8 MiB"), "{reason}");
    eventually("nothing stays", || m1.sees("w1", "t1").is_none(), || m1.view().reports.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_reports_too_many_tasks_is_refused() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    for at in 0..=MOST_TASKS / 1000 {
        let items = (0..1000).map(|task| heavy("w1", at * 1000 + task, 1)).collect();
        guest.part(at as u64, at == 0, items).await;
    }
    let reason = guest.refused().await;
    assert!(reason.contains("w1 reports more than 10000 tasks"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_is_too_long_ends_the_connection() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    // No agent would encode it.
    let mut bytes = Vec::new();
    rmp_serde::encode::write_named(&mut bytes, &heavy("w1", 1, MOST_ITEM)).expect("encoded");
    let head = Head::Batch(Span { from: 0, to: 1, first: true, whole: true });
    guest.send(head.frame_with([bytes.as_slice()].into_iter())).await;
    let reason = guest.refused().await;
    assert!(reason.contains("at most 262144 are taken"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_belong_into_a_log_are_refused() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    for (node, hostname) in
        [("w1", "evil\n2026 INFO all is well".to_owned()), ("w2", "h".repeat(600))]
    {
        let mut guest = Guest::join(&ca, &m1, node, PATH).await;
        let told = ReportedNode { hostname, address: [10, 0, 0, 66].into() };
        guest.say(0, 1, true, vec![Item::Reporter(NodeId::new(node), Some(told))]).await;
        let reason = guest.refused().await;
        assert!(reason.contains("a host name of") && !reason.contains('\n'), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lied_is_not_heard_for_a_while() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    guest.say(0, 1, true, said_by("m1", "t-m1", Life::Down)).await;
    guest.refused().await;
    let guest = Guest::join(&ca, &m1, "w1", PATH).await;
    assert_eq!(guest.response.status(), 429);
    let other = Guest::join(&ca, &m1, "w2", PATH).await;
    assert_eq!(other.response.status(), 200, "what one did is no other's fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_more_than_it_may_waits_and_holds_nobody_up() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut flood = Guest::join(&ca, &m1, "w1", PATH).await;
    let w2 = TestNode::start(&ca, &Leaf::worker("w2"));
    w2.know(&[m1.address().await]);
    let sent = tokio::spawn(async move {
        flood.say(0, 2, true, said_by("w1", "t1", Life::Active)).await;
        for at in 2.. {
            let life = if at % 2 == 0 { Life::Draining } else { Life::Active };
            let mut items = said_by("w1", "t1", life);
            items.push(heavy("w1", 2, 200_000 + at as usize % 2));
            if !flood.say_if(at, at + 1, items).await {
                break;
            }
        }
    });
    let held = || m1.link.counters().held.load(std::sync::atomic::Ordering::Relaxed);
    eventually("the flood waits", || held() > 0, held).await;
    for turn in 0..10 {
        let life = if turn % 2 == 0 { Life::Active } else { Life::Draining };
        let begun = Instant::now();
        w2.reports(&[("t2", life)]);
        eventually("w2 is heard", || m1.sees("w2", "t2") == Some(life), || ()).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    sent.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_connects_again_and_again_has_one_connection() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guests = Vec::new();
    for _ in 0..5 {
        let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
        guest.say(0, 2, true, said_by("w1", "t1", Life::Active)).await;
        guests.push(guest);
    }
    let last = guests.pop().expect("some");
    for mut old in guests {
        let ended = async { while old.hear().await.is_some() {} };
        timeout(Duration::from_secs(8), ended).await.expect("it is closed");
    }
    assert_eq!(last.response.status(), 200);
    eventually("it is alive", || m1.sees_alive("w1") == Some(true), || m1.view()).await;
}

#[test]
fn what_another_node_says_of_a_refusal_is_cut() {
    let told = End::refused(&format!("no\n{}", "x".repeat(10_000))).to_string();
    assert!(told.len() < 600 && !told.contains('\n'), "{told}");
}
