//! What the book makes of declarations and findings.

use weir_mesh::{
    Health, Port, Protocol, PublishMode, PublishedPort, TargetPort,
    health::{Check, CheckKind},
};

use super::*;

const BEGIN: Moment = Moment(Duration::ZERO);

fn at(seconds: u64) -> Moment {
    Moment(Duration::from_secs(seconds))
}

/// `web.1` to `web.4`: the first three here on n1, the last on n2.
fn web(health: Health) -> Service {
    let task = |number: u8, node: &str| Task {
        ipv4: Some([172, 18, 0, number].into()),
        ..Task::new(TaskName::new(format!("web.{number}")), NodeName::new(node))
    };
    let port = Port {
        protocol: Protocol::Tcp,
        published: PublishedPort::new(8080).unwrap(),
        target: TargetPort::new(80).unwrap(),
        mode: PublishMode::Ingress,
    };
    Service {
        ports: vec![port],
        tasks: vec![task(1, "n1"), task(2, "n1"), task(3, "n1"), task(4, "n2")],
        health,
        ..Service::new(ServiceName::new("web"))
    }
}

fn checked() -> Health {
    Health { check: Some(Check::new(CheckKind::Tcp)), ..Health::default() }
}

fn services(service: Service) -> Services {
    [(service.name.clone(), Arc::new(service))].into()
}

fn ident(number: u8) -> Ident {
    let (service, node) = (ServiceName::new("web"), NodeName::new("n1"));
    Ident::of_task(&service, &TaskName::new(format!("web.{number}")), &node)
}

fn held(tasks: &[(u8, BackendState)]) -> Held {
    tasks.iter().map(|(number, state)| (ident(*number), *state)).collect()
}

fn book(held: Held, service: Service) -> Book {
    let mut book = Book::new(NodeName::new("n1"), held);
    book.declare(&services(service), &Services::new(), BEGIN);
    book
}

/// The numbers of the tasks that take new flows.
fn active(book: &Book) -> Vec<String> {
    let services = book.overlaid();
    let tasks = services.values().flat_map(|service| &service.tasks);
    let active = tasks.filter(|task| task.state == TaskState::Active);
    active.map(|task| task.name.as_str().trim_start_matches("web.").to_owned()).collect()
}

fn refuse(book: &mut Book, number: u8, refused: u64, now: Moment) -> bool {
    book.note(Finding::Seen(vec![(ident(number), Seen { accepted: 0, refused })]), now)
}

fn probe(book: &mut Book, number: u8, found: Result<(), &str>) -> bool {
    book.note(Finding::Probed(ident(number), Purpose::Check, found.map_err(str::to_owned)), BEGIN)
}

fn asked(number: u8) -> (Ident, Purpose) {
    (ident(number), Purpose::Check)
}

fn reason(book: &Book, number: u8) -> String {
    book.health()[&ident(number)].reason.clone().unwrap_or_default()
}

#[test]
fn a_new_task_without_a_check_is_active_at_once_and_the_snapshot_is_the_sources_own() {
    let declared = services(web(Health::default()));
    let mut book = Book::new(NodeName::new("n1"), Held::new());
    book.declare(&declared, &Services::new(), BEGIN);
    assert!(Arc::ptr_eq(
        book.overlaid().values().next().unwrap(),
        declared.values().next().unwrap()
    ));
    assert!(book.targets().is_empty());
}

#[test]
fn a_new_task_with_a_check_is_out_until_it_has_risen_and_only_this_nodes_are_judged() {
    let mut book = book(Held::new(), web(checked()));
    assert_eq!(active(&book), ["4"]);
    assert_eq!(reason(&book, 1), "health: not healthy yet");
    let targets = book.targets();
    assert_eq!(targets.len(), 3);
    assert_eq!(targets[&asked(1)].addresses, ["172.18.0.1:80".parse().unwrap()]);
    assert!(!targets[&asked(1)].known);
    assert!(probe(&mut book, 1, Err("tcp refused the connection")));
    assert_eq!(reason(&book, 1), "health: not healthy yet, tcp refused the connection");
    assert!(!probe(&mut book, 1, Ok(())) && probe(&mut book, 1, Ok(())));
    assert_eq!(active(&book), ["1", "4"]);
    assert!(book.targets()[&asked(1)].known);
}

#[test]
fn a_task_that_its_node_does_not_reach_is_not_asked_and_serves() {
    let mut service = web(checked());
    service.tasks[0].ipv4 = None;
    let book = book(Held::new(), service);
    assert_eq!(active(&book), ["1", "4"]);
    assert!(!book.targets().contains_key(&asked(1)));
}

#[test]
fn a_task_that_fails_its_check_is_out_with_the_reason_until_it_has_risen_again() {
    let mut book = book(held(&[(1, BackendState::Active)]), web(checked()));
    assert_eq!(active(&book), ["1", "4"], "it was active before the agent began");
    let bad = Err("http /healthz answered 503");
    assert!(!probe(&mut book, 1, bad) && !probe(&mut book, 1, bad));
    assert_eq!(
        (active(&book), reason(&book, 1)),
        (vec!["1".to_owned(), "4".to_owned()], String::new())
    );
    assert!(probe(&mut book, 1, bad));
    assert_eq!(active(&book), ["4"]);
    assert_eq!(reason(&book, 1), "health: http /healthz answered 503, 3 times");
    assert!(!probe(&mut book, 1, Ok(())) && probe(&mut book, 1, Ok(())));
    assert_eq!((active(&book).len(), reason(&book, 1)), (2, String::new()));
}

#[test]
fn a_check_that_is_added_or_taken_away_ends_nothing() {
    let mut book = book(Held::new(), web(Health::default()));
    book.declare(&services(web(checked())), &Services::new(), BEGIN);
    assert_eq!((active(&book).len(), book.targets().len()), (4, 3));
    for _ in 0..3 {
        probe(&mut book, 2, Err("tcp refused the connection"));
    }
    assert_eq!(active(&book), ["1", "3", "4"]);
    book.declare(&services(web(Health::default())), &Services::new(), BEGIN);
    assert_eq!((active(&book).len(), book.targets().len()), (4, 0));
}

#[test]
fn a_task_that_refuses_is_ejected_and_comes_back() {
    let mut book = book(Held::new(), web(Health::default()));
    assert!(!refuse(&mut book, 2, 4, at(1)) && refuse(&mut book, 2, 1, at(2)));
    assert_eq!(active(&book), ["1", "3", "4"]);
    assert_eq!(reason(&book, 2), "ejected for 10 s: refused 5 connections");
    assert_eq!(book.health()[&ident(2)].ejections, 1);
    assert_eq!(book.due(), Some(at(12)));
    assert!(!book.tick(at(11)) && book.tick(at(12)));
    assert_eq!((active(&book).len(), book.due()), (4, None));
    assert!(refuse(&mut book, 2, 5, at(13)));
    assert_eq!(reason(&book, 2), "ejected for 20 s: refused 5 connections");
}

#[test]
fn an_ejected_task_is_asked_at_every_tcp_port_and_comes_back_when_it_listens() {
    let mut service = web(Health::default());
    let second = Port {
        published: PublishedPort::new(8443).unwrap(),
        target: TargetPort::new(443).unwrap(),
        ..service.ports[0]
    };
    service.ports.push(second);
    let mut book = book(Held::new(), service);
    assert!(book.targets().is_empty());
    refuse(&mut book, 1, 5, at(1));
    let targets = book.targets();
    let addresses = ["172.18.0.1:80", "172.18.0.1:443"].map(|text| text.parse().unwrap());
    assert_eq!(targets[&(ident(1), Purpose::Return)].addresses, addresses);
    let listens = || Finding::Probed(ident(1), Purpose::Return, Ok(()));
    assert!(!book.note(listens(), at(2)) && book.note(listens(), at(3)));
    assert_eq!((active(&book).len(), book.targets().len()), (4, 0));
}

#[test]
fn in_host_mode_only_this_nodes_tasks_count_as_left() {
    let mut service = web(Health::default());
    service.ports[0].mode = PublishMode::Host;
    service.tasks.drain(1..3);
    let mut book = book(Held::new(), service);
    refuse(&mut book, 1, 5, at(1));
    assert_eq!(active(&book), ["1", "4"]);
}

#[test]
fn when_too_few_would_be_left_nobody_is_ejected() {
    let mut book = book(Held::new(), web(Health::default()));
    refuse(&mut book, 1, 5, at(1));
    refuse(&mut book, 2, 5, at(1));
    assert_eq!(active(&book), ["3", "4"]);
    refuse(&mut book, 3, 5, at(1));
    assert_eq!(active(&book).len(), 4, "a quarter would be left, so all are used");
    let why = "not ejected, although it refused 5 connections: fewer than 50 % of the tasks would \
               be left";
    assert_eq!(reason(&book, 1), why);
    assert!(book.health()[&ident(3)].healthy);
    let accepted = Seen { accepted: 1, refused: 0 };
    assert!(book.note(Finding::Seen(vec![(ident(3), accepted)]), at(2)));
    assert_eq!(active(&book), ["3", "4"], "one can be used again, so the others are out");
}

fn with_verdict(mut service: Service, task: usize, verdict: Verdict) -> Service {
    service.tasks[task].verdict = Some(verdict);
    service
}

fn ejected() -> Verdict {
    Verdict::Ejected { time: Duration::from_secs(10), refused: 7 }
}

#[test]
fn what_another_node_says_of_its_own_tasks_counts_here_as_it_does_there() {
    let failing = || Verdict::Failing { problem: "tcp refused the connection".to_owned() };
    let book = book(Held::new(), with_verdict(web(Health::default()), 3, failing()));
    assert_eq!(active(&book), ["1", "2", "3"]);
    let book = self::book(Held::new(), with_verdict(web(Health::default()), 3, ejected()));
    assert_eq!(active(&book), ["1", "2", "3"]);
}

#[test]
fn the_panic_threshold_holds_for_the_tasks_of_all_nodes_together() {
    let mut book = book(Held::new(), with_verdict(web(Health::default()), 3, ejected()));
    refuse(&mut book, 1, 5, at(1));
    assert_eq!(active(&book), ["2", "3"]);
    refuse(&mut book, 2, 5, at(1));
    assert_eq!(active(&book).len(), 4, "a quarter would be left, so all are used");
    let why = "not ejected, although it refused 5 connections: fewer than 50 % of the tasks would \
               be left";
    assert_eq!(reason(&book, 1), why);
    let told = book.health()[&ident(1)].verdict.clone();
    assert_eq!(told, Some(Verdict::Ejected { time: Duration::from_secs(10), refused: 5 }));
    // It serves again there, and so the others are out.
    book.declare(&services(web(Health::default())), &Services::new(), at(2));
    assert_eq!(active(&book), ["3", "4"]);
}

/// The service, with what a book of the tasks' node says of them.
fn told_by(book: &Book, mut service: Service) -> Service {
    let health = book.health();
    for task in &mut service.tasks {
        let ident = Ident::of_task(&service.name, &task.name, &task.node);
        task.verdict = health.get(&ident).and_then(|known| known.verdict.clone());
    }
    service
}

#[test]
fn nodes_that_have_told_each_other_let_the_same_tasks_have_flows() {
    let declared = web(Health::default());
    let idents: Vec<Ident> = declared
        .tasks
        .iter()
        .map(|task| Ident::of_task(&declared.name, &task.name, &task.node))
        .collect();
    for refusing in 0..1_u8 << idents.len() {
        let [mut first, mut second] = ["n1", "n2"].map(|node| {
            let mut book = Book::new(NodeName::new(node), Held::new());
            book.declare(&services(declared.clone()), &Services::new(), BEGIN);
            book
        });
        for (number, ident) in idents.iter().enumerate().filter(|(it, _)| refusing & (1 << it) != 0)
        {
            let book = if number < 3 { &mut first } else { &mut second };
            let refused = number as u64 + 5;
            book.note(Finding::Seen(vec![(*ident, Seen { accepted: 0, refused })]), at(1));
        }
        let [of_first, of_second] = [&first, &second].map(|book| told_by(book, declared.clone()));
        first.declare(&services(of_second), &Services::new(), at(1));
        second.declare(&services(of_first), &Services::new(), at(1));
        assert_eq!(active(&first), active(&second), "{refusing:04b} refuse");
        let left = 4 - refusing.count_ones() as usize;
        let expected = if left < 2 { 4 } else { left };
        assert_eq!(active(&first).len(), expected, "{refusing:04b} refuse");
    }
}

#[test]
fn a_service_that_wants_no_ejection_has_none() {
    let mut book = book(Held::new(), web(Health { check: None, ejection: None }));
    assert!(!refuse(&mut book, 1, 500, at(1)));
    assert_eq!((active(&book).len(), book.health().len()), (4, 0));
}

#[test]
fn after_a_restart_an_ejected_task_stays_out_for_a_while_and_what_was_draining_is_not_taken_for_it()
{
    let held = held(&[(1, BackendState::Draining), (2, BackendState::Active)]);
    let mut before = web(Health::default());
    let mut first = Book::new(NodeName::new("n1"), held.clone());
    let declared = services(web(Health::default()));
    first.declare(&declared, &services(before.clone()), BEGIN);
    assert_eq!(active(&first), ["2", "3", "4"]);
    assert_eq!(reason(&first, 1), "ejected for 10 s: so it was when the agent began");
    assert!(first.tick(at(10)));
    assert_eq!(active(&first).len(), 4);
    before.tasks[0].state = TaskState::Draining;
    let mut second = Book::new(NodeName::new("n1"), held);
    second.declare(&declared, &services(before), BEGIN);
    assert_eq!(active(&second).len(), 4);
}

#[test]
fn after_a_restart_a_task_that_was_out_is_ejected_if_it_passes_its_check() {
    let held = held(&[(1, BackendState::Draining), (2, BackendState::Draining)]);
    let mut book = book(held, web(checked()));
    for _ in 0..2 {
        probe(&mut book, 1, Ok(()));
    }
    probe(&mut book, 2, Err("tcp refused the connection"));
    for _ in 0..2 {
        probe(&mut book, 2, Ok(()));
    }
    assert_eq!(active(&book), ["2", "4"]);
    assert_eq!(reason(&book, 1), "ejected for 10 s: so it was when the agent began");
    assert!(book.tick(at(10)));
    assert_eq!(active(&book), ["1", "2", "4"]);
}

#[test]
fn a_task_with_another_address_is_another_and_one_that_drains_is_not_asked() {
    let mut service = web(checked());
    let active_held = [(1, BackendState::Active), (2, BackendState::Active)];
    let mut book = book(held(&active_held), service.clone());
    assert_eq!(active(&book), ["1", "2", "4"]);
    service.tasks[0].ipv4 = Some([172, 18, 0, 99].into());
    service.tasks[1].state = TaskState::Draining;
    book.declare(&services(service.clone()), &Services::new(), BEGIN);
    assert_eq!(active(&book), ["4"]);
    assert_eq!(book.targets().keys().filter(|task| **task == asked(2)).count(), 0);
    service.tasks[1].state = TaskState::Active;
    book.declare(&services(service), &Services::new(), BEGIN);
    assert_eq!(active(&book), ["2", "4"], "it was healthy before it drained");
    book.declare(&Services::new(), &Services::new(), BEGIN);
    assert!(book.health().is_empty() && book.targets().is_empty());
}

fn drained(tasks: &[(&str, &str)], node: bool) -> Finding {
    let task = |&(task, node): &(&str, &str)| crate::drain::DrainedTask {
        service: ServiceName::new("web"),
        task: TaskName::new(task),
        node: NodeName::new(node),
    };
    Finding::Drained(Arc::new(Drained { node, tasks: tasks.iter().map(task).collect() }))
}

#[test]
fn a_task_that_is_drained_by_hand_is_out_whoever_is_left_and_others_are_told_of_this_nodes() {
    let mut book = book(Held::new(), web(Health::default()));
    assert!(book.note(drained(&[("web.1", "n1"), ("web.4", "n2")], false), BEGIN));
    assert_eq!(active(&book), ["2", "3"]);
    assert_eq!(reason(&book, 1), "drained by hand");
    let told = book.health()[&ident(1)].verdict.clone();
    assert_eq!(told.unwrap().to_string(), "health: drained by hand");
    let there =
        Ident::of_task(&ServiceName::new("web"), &TaskName::new("web.4"), &NodeName::new("n2"));
    assert_eq!(book.health()[&there].verdict, None, "its own node knows best");
    assert!(!book.note(drained(&[("web.1", "n1"), ("web.4", "n2")], false), BEGIN), "no news");
    assert!(book.note(drained(&[], true), BEGIN));
    assert_eq!(active(&book), ["4"], "all of this node");
    assert!(book.note(drained(&[("web.4", "n2")], true), BEGIN));
    assert!(active(&book).is_empty(), "even the last");
    assert!(book.note(drained(&[], false), BEGIN));
    assert_eq!(active(&book), ["1", "2", "3", "4"]);
}

#[test]
fn what_is_drained_by_hand_counts_as_out_for_the_panic_threshold() {
    for (tasks, node) in [(&[("web.1", "n1"), ("web.4", "n2")][..], false), (&[], true)] {
        let mut book = book(Held::new(), web(Health { check: None, ..Health::default() }));
        refuse(&mut book, 3, 5, at(1));
        assert_eq!(active(&book), ["1", "2", "4"]);
        book.note(drained(tasks, node), at(1));
        let left = if node { vec!["4"] } else { vec!["2", "3"] };
        assert_eq!(active(&book), left, "one of four would be left, so nobody is ejected");
        book.note(drained(&[], false), at(1));
        assert_eq!(active(&book), ["1", "2", "4"]);
    }
}

#[test]
fn after_a_restart_what_is_drained_by_hand_is_not_taken_for_ejected() {
    let held = held(&[(1, BackendState::Draining), (2, BackendState::Active)]);
    let mut book = Book::new(NodeName::new("n1"), held);
    book.note(drained(&[("web.1", "n1")], false), BEGIN);
    book.declare(&services(web(Health::default())), &Services::new(), BEGIN);
    assert_eq!((active(&book).len(), reason(&book, 1).as_str()), (3, "drained by hand"));
    assert_eq!(book.health()[&ident(1)].ejections, 0);
    assert!(book.note(drained(&[], false), at(1)));
    assert_eq!(active(&book), ["1", "2", "3", "4"], "nothing keeps it out any more");
}
