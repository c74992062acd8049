//! One story each.

use std::time::Duration;

use weir_mesh::{
    Moment,
    health::{Check, CheckKind, CheckState, Ejection, EjectionState, Seen, spares},
};

const SETTINGS: Ejection = Ejection {
    refused: 5,
    within: Duration::from_secs(10),
    time: Duration::from_secs(10),
    panic: 50,
};

fn at(seconds: u64) -> Moment {
    Moment(Duration::from_secs(seconds))
}

fn refused(count: u64) -> Seen {
    Seen { accepted: 0, refused: count }
}

fn accepted(count: u64) -> Seen {
    Seen { accepted: count, refused: 0 }
}

fn seconds_out(state: &EjectionState) -> u64 {
    state.current().unwrap().0.as_secs()
}

#[test]
fn a_task_rises_after_good_probes_in_a_row_and_falls_after_bad_ones_in_a_row() {
    let check = Check::new(CheckKind::Tcp);
    let mut state = CheckState::new(false);
    assert!(!state.note(true, &check) && !state.is_healthy(), "one is not enough");
    assert!(!state.note(false, &check), "the row is broken");
    assert!(!state.note(true, &check) && state.note(true, &check) && state.is_healthy());
    assert!(!state.note(false, &check) && !state.note(false, &check));
    assert!(
        !state.note(true, &check) && state.is_healthy(),
        "two are not enough, the row is broken"
    );
    assert!(!state.note(false, &check) && !state.note(false, &check));
    assert!(state.note(false, &check) && !state.is_healthy());
}

#[test]
fn five_refusals_without_an_accepted_connection_between_them_eject() {
    let mut state = EjectionState::default();
    assert!(!state.note(refused(4), at(1), &SETTINGS));
    assert!(!state.note(accepted(1), at(2), &SETTINGS));
    assert!(!state.note(refused(4), at(3), &SETTINGS));
    assert!(state.note(refused(1), at(4), &SETTINGS));
    assert_eq!(state.current(), Some((SETTINGS.time, 5)));
}

#[test]
fn refusals_that_are_seen_with_an_accepted_connection_count_for_nothing() {
    let mut state = EjectionState::default();
    assert!(!state.note(Seen { accepted: 1, refused: 100 }, at(1), &SETTINGS));
    assert!(!state.note(refused(4), at(2), &SETTINGS));
}

#[test]
fn old_refusals_are_forgotten() {
    let mut state = EjectionState::default();
    assert!(!state.note(refused(4), at(0), &SETTINGS));
    assert!(!state.note(refused(4), at(10), &SETTINGS));
    assert!(state.note(refused(1), at(19), &SETTINGS));
}

#[test]
fn an_ejection_ends_by_itself_and_each_is_twice_as_long_as_the_one_before_up_to_a_bound() {
    let mut state = EjectionState::default();
    let mut now = 0;
    for expected in [10, 20, 40, 80, 160, 300, 300] {
        assert!(state.note(refused(5), at(now), &SETTINGS));
        assert_eq!(seconds_out(&state), expected);
        now += expected;
        assert_eq!(state.due(), Some(at(now)));
        assert!(!state.tick(at(now - 1), &SETTINGS) && state.tick(at(now), &SETTINGS));
        assert_eq!((state.current(), state.due()), (None, None));
    }
}

#[test]
fn a_first_ejection_may_be_longer_than_the_bound() {
    let settings = Ejection { time: Duration::from_secs(900), ..SETTINGS };
    let mut state = EjectionState::default();
    for now in [0, 900] {
        assert!(state.note(refused(5), at(now), &settings));
        assert_eq!(seconds_out(&state), 900);
    }
}

#[test]
fn a_task_that_stays_in_is_trusted_again() {
    let mut state = EjectionState::default();
    assert!(state.note(refused(5), at(0), &SETTINGS));
    assert!(state.note(refused(5), at(10), &SETTINGS), "it comes back and is ejected at once");
    assert!(state.tick(at(30), &SETTINGS));
    // Next it would be out for 40 s. It stays in for those, and for the 20 s that it is then at.
    assert!(!state.note(accepted(1), at(30 + 60), &SETTINGS));
    assert!(state.note(refused(5), at(91), &SETTINGS));
    assert_eq!(seconds_out(&state), 10);
}

#[test]
fn a_task_that_accepts_while_it_is_ejected_comes_back_at_once() {
    let mut state = EjectionState::default();
    assert!(state.note(refused(5), at(0), &SETTINGS));
    assert!(!state.note(refused(9), at(1), &SETTINGS), "ejected already");
    assert!(!state.note(Seen { accepted: 1, refused: 1 }, at(2), &SETTINGS), "it depends");
    assert!(state.note(accepted(1), at(3), &SETTINGS));
    assert_eq!(state.current(), None);
}

#[test]
fn a_task_that_is_found_to_listen_comes_back_early_and_the_later_the_more_often_it_was_ejected() {
    let mut state = EjectionState::default();
    assert!(!state.listens(true, at(0), &SETTINGS), "it is not ejected");
    for needed in [2, 3, 4, 5, 5, 5] {
        assert!(state.note(refused(5), at(1), &SETTINGS));
        assert!(!state.listens(true, at(2), &SETTINGS) && !state.listens(false, at(3), &SETTINGS));
        for _ in 1..needed {
            assert!(!state.listens(true, at(4), &SETTINGS), "{needed} in a row are needed");
        }
        assert!(state.listens(true, at(5), &SETTINGS));
        assert_eq!(state.current(), None);
    }
}

#[test]
fn the_panic_threshold_is_a_part_of_all_tasks_that_may_not_be_gone_below() {
    assert!(!spares(2, 0, 1, &SETTINGS), "half are left");
    assert!(spares(3, 0, 2, &SETTINGS), "a third is left");
    assert!(spares(4, 2, 1, &SETTINGS), "those that are out for other reasons are not left");
    assert!(spares(1, 0, 1, &SETTINGS));
    assert!(!spares(1, 0, 1, &Ejection { panic: 0, ..SETTINGS }), "0: always eject");
    assert!(spares(9, 0, 1, &Ejection { panic: 100, ..SETTINGS }), "100: never eject");
}
