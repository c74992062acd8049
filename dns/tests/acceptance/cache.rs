//! What is remembered of others' answers, and for how long.

use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use weir_dns::forward::Question;

use super::{
    local::extended_error,
    upstream::{Mood, Upstream},
    world::{Type, World, code, data, question, with_edns},
};

const NAME: &str = "www.example.org.";

async fn asking(mood: Mood) -> (World, Upstream) {
    let world = World::new();
    let upstream = Upstream::start(mood).await;
    world.ask_also(&[upstream.address], &[]);
    (world, upstream)
}

fn asked(name: &str) -> Question {
    let name = weir_dns::name::from_text(name).unwrap();
    Question { name, rtype: 1, dnssec_ok: false, checking_disabled: false }
}

/// Seconds for which what is remembered of a name may be given.
fn ttl(world: &World, name: &str) -> i64 {
    let read = world.handler.forwarder.read_cache(Instant::now());
    read.names.iter().find(|known| known.name == name).expect("it is not remembered").ttl
}

#[tokio::test]
async fn line_16_an_answer_is_remembered_and_its_time_goes_by() {
    let (world, upstream) = asking(Mood::Answer(60)).await;
    for _ in 0..5 {
        assert_eq!(data(&world.look_up(NAME).await), ["203.0.113.1"]);
    }
    assert_eq!(data(&world.look_up("WWW.example.ORG.").await), ["203.0.113.1"]);
    assert_eq!(upstream.times_asked(), 1);
    let later = Instant::now() + Duration::from_secs(20);
    let said = world.handler.forwarder.look(&asked(NAME), later).unwrap();
    let relay = weir_dns::forward::Relay {
        question: &question(NAME, Type::A).to_vec().unwrap(),
        limit: 512,
        tail: None,
    };
    let mut reply = Vec::new();
    relay.write(&said, later, &mut reply);
    let said = hickory_proto::op::Message::from_vec(&reply).unwrap();
    assert!((39..=40).contains(&said.answers[0].ttl), "{}", said.answers[0].ttl);
}

#[tokio::test]
async fn line_16_types_and_wishes_are_remembered_apart() {
    let (world, upstream) = asking(Mood::Answer(60)).await;
    world.look_up(NAME).await;
    world.resolve(&question(NAME, Type::AAAA)).await;
    let mut signed = with_edns(NAME, Type::A, 1232);
    signed.edns.as_mut().unwrap().set_dnssec_ok(true);
    world.resolve(&signed).await;
    let mut unchecked = question(NAME, Type::A);
    unchecked.metadata.checking_disabled = true;
    world.resolve(&unchecked).await;
    assert_eq!(upstream.times_asked(), 4);
}

#[tokio::test]
async fn line_16_times_have_bounds() {
    let (world, upstream) = asking(Mood::Answer(1_000_000)).await;
    world.look_up(NAME).await;
    assert!((3590..=3600).contains(&ttl(&world, NAME)));
    upstream.be(Mood::Answer(0));
    world.look_up("short.example.org.").await;
    assert!((4..=5).contains(&ttl(&world, "short.example.org.")));
}

#[tokio::test]
async fn line_16_that_a_name_is_not_there_is_remembered_as_its_soa_says() {
    let (world, upstream) = asking(Mood::Nothing(70)).await;
    for _ in 0..3 {
        assert_eq!(code(&world.look_up(NAME).await), ResponseCode::NXDomain);
    }
    assert_eq!(upstream.times_asked(), 1);
    assert!((68..=70).contains(&ttl(&world, NAME)), "the least of MINIMUM and the SOA's own TTL");
    upstream.be(Mood::NothingUnsaid);
    world.look_up("unsaid.example.org.").await;
    assert!(ttl(&world, "unsaid.example.org.") <= 5);
}

#[tokio::test]
async fn line_16_that_nobody_answers_is_remembered_for_a_moment() {
    let (world, upstream) = asking(Mood::Fail).await;
    for _ in 0..3 {
        assert_eq!(code(&world.look_up(NAME).await), ResponseCode::ServFail);
    }
    let asked_first = upstream.times_asked();
    assert!(asked_first <= 2, "{asked_first}");
    assert!((1..=5).contains(&ttl(&world, NAME)));
    upstream.be(Mood::Answer(60));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(data(&world.look_up(NAME).await), ["203.0.113.1"]);
}

#[tokio::test]
async fn line_16_of_many_who_ask_the_same_one_asks() {
    let (world, upstream) = asking(Mood::Slow(200)).await;
    let all = (0..50).map(|_| world.look_up(NAME));
    let mut joined = Vec::new();
    // All of them are under way before the first has its answer.
    for one in all {
        joined.push(Box::pin(one));
    }
    for one in &mut joined {
        let waker = std::task::Waker::noop();
        let _ = one.as_mut().poll(&mut std::task::Context::from_waker(waker));
    }
    for one in joined {
        assert_eq!(data(&one.await), ["203.0.113.1"]);
    }
    assert_eq!(upstream.times_asked(), 1);
}

#[tokio::test]
async fn line_16_what_is_asked_for_often_is_asked_for_again_before_its_time_is_over() {
    let (world, upstream) = asking(Mood::Answer(100)).await;
    for _ in 0..3 {
        world.look_up(NAME).await;
    }
    let forwarder = &world.handler.forwarder;
    let (early, late) = (Duration::from_secs(80), Duration::from_secs(95));
    assert!(forwarder.look(&asked(NAME), Instant::now() + early).is_some());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(upstream.times_asked(), 1);
    assert!(forwarder.look(&asked(NAME), Instant::now() + late).is_some());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(upstream.times_asked(), 2);
}

#[tokio::test]
async fn line_16_a_stale_answer_is_better_than_none() {
    let (world, upstream) = asking(Mood::Answer(0)).await;
    world.look_up(NAME).await;
    upstream.be(Mood::Silent);
    tokio::time::sleep(Duration::from_millis(5100)).await;
    let begun = Instant::now();
    let said = world.resolve(&with_edns(NAME, Type::A, 1232)).await;
    // As asked without EDNS before: what differs is between two hosts only.
    assert_eq!((data(&said), extended_error(&said)), (vec!["203.0.113.1".to_owned()], Some(3)));
    assert_eq!(said.answers[0].ttl, 30);
    let waited = begun.elapsed();
    assert!((1700..2500).contains(&waited.as_millis()), "{waited:?}");
    let begun = Instant::now();
    world.look_up(NAME).await;
    assert!(begun.elapsed() < Duration::from_millis(100), "it is not waited for twice");
}

#[tokio::test]
async fn line_16_the_cache_stays_within_its_bytes() {
    let settings = weir_dns::forward::Settings { cache: 64 << 10, ..Default::default() };
    let mut world = World::new();
    let upstream = Upstream::start(Mood::Answer(60)).await;
    world.handler =
        std::sync::Arc::new(super::world::handler(&world.settings, &world.outside, settings));
    world.publish();
    world.ask_also(&[upstream.address], &[]);
    for at in 0..400 {
        world.look_up(&format!("n{at}.example.org.")).await;
    }
    let read = world.handler.forwarder.read_cache(Instant::now());
    assert!(read.bytes <= 64 << 10 && read.entries > 50, "{} in {}", read.entries, read.bytes);
    assert!(read.names.iter().any(|known| known.name == "n399.example.org."));
}
