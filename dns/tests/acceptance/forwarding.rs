//! Names of others: who is asked, in what order, and how much one bad server costs.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use weir_dns::{
    Outcome, Routes,
    forward::Route,
    handler::{Ends, Transport},
};

use super::{
    local::extended_error,
    upstream::{Mood, Upstream},
    world::{ALLOWED, BLUE, Type, World, code, data, question, with_edns},
};

const NAME: &str = "www.example.org.";

impl World {
    /// What is answered in the end, whoever is asked for it.
    pub async fn resolve(&self, message: &Message) -> Message {
        let packet = message.to_vec().unwrap();
        let client = (ALLOWED.parse::<std::net::IpAddr>().unwrap(), 4711).into();
        let ends = Ends { client, transport: Transport::Udp };
        let mut reply = Vec::new();
        match self.handler.answer(&packet, ends, Instant::now(), &mut reply) {
            Outcome::Reply(_) => {}
            Outcome::Nothing(why) => panic!("not answered: {why:?}"),
            Outcome::Forward(pending) => {
                let said = self.handler.forwarder.resolve(&pending.question).await;
                self.handler.complete(&pending, &said, Instant::now(), &mut reply);
            }
        }
        Message::from_vec(&reply).unwrap()
    }

    pub async fn look_up(&self, name: &str) -> Message {
        self.resolve(&question(name, Type::A)).await
    }
}

async fn asking(moods: &[Mood]) -> (World, Vec<Upstream>) {
    let world = World::new();
    let mut upstreams = Vec::new();
    for mood in moods {
        upstreams.push(Upstream::start(*mood).await);
    }
    let addresses: Vec<_> = upstreams.iter().map(|one| one.address).collect();
    world.ask_also(&addresses, &[]);
    (world, upstreams)
}

#[tokio::test]
async fn line_17_a_name_of_others_is_looked_up_and_the_answer_given_on() {
    let (world, _upstreams) = asking(&[Mood::Answer(60)]).await;
    let said = world.look_up("wWw.Example.org.").await;
    assert_eq!(data(&said), ["203.0.113.1"]);
    let head = &said.metadata;
    assert!(head.recursion_available && !head.authoritative && head.recursion_desired);
    assert_eq!(said.queries[0].name().to_string(), "wWw.Example.org.");
    assert!(said.edns.is_none(), "nobody used EDNS here");
}

#[tokio::test]
async fn line_17_a_silent_server_costs_less_than_half_a_second_and_then_nothing() {
    let (world, upstreams) = asking(&[Mood::Silent, Mood::Answer(60)]).await;
    let begun = Instant::now();
    assert_eq!(data(&world.look_up(NAME).await), ["203.0.113.1"]);
    let first = begun.elapsed();
    assert!((300..900).contains(&first.as_millis()), "{first:?}");
    // The answers that never came are counted when their time is over.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for at in 0..2 {
        world.look_up(&format!("n{at}.example.org.")).await;
    }
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let begun = Instant::now();
    world.look_up("later.example.org.").await;
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
    let read = world.handler.forwarder.routes().read();
    let silent = read.iter().find(|one| one.address == upstreams[0].address).unwrap();
    assert!(silent.failures > 0 && silent.trouble.is_some(), "{silent:?}");
}

#[tokio::test]
async fn line_17_a_server_that_fails_is_left_for_the_next_at_once() {
    let (world, _upstreams) = asking(&[Mood::Fail, Mood::Answer(60)]).await;
    let begun = Instant::now();
    assert_eq!(data(&world.look_up(NAME).await), ["203.0.113.1"]);
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn line_17_a_server_that_nobody_listens_at_is_left_for_the_next_at_once() {
    let (world, upstreams) = asking(&[Mood::Answer(60)]).await;
    world.ask_also(&["127.0.0.1:9".parse().unwrap(), upstreams[0].address], &[]);
    let begun = Instant::now();
    assert_eq!(data(&world.look_up(NAME).await), ["203.0.113.1"]);
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn line_17_lies_are_not_taken_and_the_truth_is_waited_for() {
    let (world, _upstreams) = asking(&[Mood::LieFirst]).await;
    assert_eq!(data(&world.look_up(NAME).await), ["203.0.113.1"]);
}

#[tokio::test]
async fn line_17_every_question_has_a_port_of_its_own() {
    let (world, upstreams) = asking(&[Mood::Answer(60)]).await;
    for at in 0..20 {
        world.look_up(&format!("n{at}.example.org.")).await;
    }
    let ports: BTreeSet<u16> = upstreams[0].ports.lock().unwrap().iter().copied().collect();
    assert!(ports.len() >= 18, "{ports:?}");
}

#[tokio::test]
async fn line_17_a_server_without_edns_is_asked_without() {
    let (world, upstreams) = asking(&[Mood::WithoutEdns]).await;
    assert_eq!(data(&world.look_up(NAME).await), ["203.0.113.1"]);
    assert_eq!(upstreams[0].times_asked(), 2);
}

#[tokio::test]
async fn line_17_what_is_cut_is_asked_for_over_tcp() {
    let (world, upstreams) = asking(&[Mood::Many(100)]).await;
    let said = world.resolve(&with_edns(NAME, Type::A, 1232)).await;
    assert!(said.metadata.truncation && said.answers.len() > 60, "{}", said.answers.len());
    assert_eq!(upstreams[0].times_asked(), 2);
    let by_tcp = world.ask_by_tcp(ALLOWED, NAME, Type::A);
    assert_eq!((by_tcp.answers.len(), by_tcp.metadata.truncation), (100, false));
    assert_eq!(upstreams[0].times_asked(), 2, "the whole answer is remembered");
}

#[tokio::test]
async fn line_17_a_domain_has_its_own_servers() {
    let (world, upstreams) = asking(&[Mood::Answer(60), Mood::Nothing(60)]).await;
    let corp: Route = format!("corp.example={}", upstreams[1].address).parse().unwrap();
    world.ask_also(&[upstreams[0].address], &[corp]);
    assert_eq!(data(&world.look_up("www.example.").await), ["203.0.113.1"]);
    assert_eq!(code(&world.look_up("www.corp.example.").await), ResponseCode::NXDomain);
    assert_eq!(data(&world.look_up("www.notcorp.example.").await), ["203.0.113.1"]);
}

#[tokio::test]
async fn line_17_we_never_ask_ourselves() {
    let (world, upstreams) = asking(&[Mood::Answer(60)]).await;
    let own = upstreams[0].address;
    world.handler.forwarder.set_routes(Routes::new(&[own], &[], &[own]));
    let said = world.resolve(&with_edns(NAME, Type::A, 1232)).await;
    assert_eq!((code(&said), extended_error(&said)), (ResponseCode::ServFail, Some(22)));
    assert!(!said.metadata.recursion_available);
    assert_eq!(upstreams[0].times_asked(), 0);
}

#[tokio::test]
async fn line_17_a_question_that_comes_back_from_a_server_is_refused() {
    let (world, _upstreams) = asking(&[Mood::Silent]).await;
    let handler = world.handler.clone();
    let asking = tokio::spawn(async move {
        let question = weir_dns::forward::Question {
            name: weir_dns::name::from_text(NAME).unwrap(),
            rtype: 1,
            dnssec_ok: false,
            checking_disabled: false,
        };
        handler.forwarder.resolve(&question).await
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(code(&world.ask("127.0.0.1", NAME, Type::A)), ResponseCode::Refused);
    asking.abort();
}

#[tokio::test]
async fn line_18_a_name_of_ours_does_not_wait_for_servers_that_do_not_answer() {
    let (world, _upstreams) = asking(&[Mood::Silent]).await;
    let world = Arc::new(world);
    for at in 0..500 {
        let handler = world.handler.clone();
        let question = question(&format!("n{at}.example.org."), Type::A);
        tokio::spawn(async move {
            let packet = question.to_vec().unwrap();
            let client = (ALLOWED.parse::<std::net::IpAddr>().unwrap(), 4711).into();
            let ends = Ends { client, transport: Transport::Udp };
            if let Outcome::Forward(pending) =
                handler.answer(&packet, ends, Instant::now(), &mut Vec::new())
            {
                handler.forwarder.resolve(&pending.question).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(world.data(BLUE, "web.", Type::A), ["10.0.9.2"]);
    }
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn line_19_that_nobody_answers_is_said_and_takes_less_than_five_seconds() {
    let (world, _upstreams) = asking(&[Mood::Silent]).await;
    let begun = Instant::now();
    let said = world.resolve(&with_edns(NAME, Type::A, 1232)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((code(&said), extended_error(&said)), (ResponseCode::ServFail, Some(22)));
}
