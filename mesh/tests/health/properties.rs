//! What holds whatever happens.

use std::time::Duration;

use proptest::prelude::*;
use weir_mesh::{
    Moment,
    health::{Check, CheckKind, CheckState, Ejection, EjectionState, Seen, spares},
};

fn settings() -> impl Strategy<Value = Ejection> {
    (1..8_u32, 1..30_u64, 1..400_u64, 0..=100_u8).prop_map(|(refused, within, time, panic)| {
        let (within, time) = (Duration::from_secs(within), Duration::from_secs(time));
        Ejection { refused, within, time, panic }
    })
}

/// Milliseconds that pass, connections accepted and refused.
fn story() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    let accepted = prop_oneof![3 => Just(0_u64), 1 => 1..3_u64];
    proptest::collection::vec((1..60_000_u64, accepted, 0..6_u64), 0..60)
}

proptest! {
    #[test]
    fn a_task_changes_only_after_as_many_probes_in_a_row_as_asked(
        probes in proptest::collection::vec(any::<bool>(), 0..80),
        rise in 1..5_u32,
        fall in 1..5_u32,
        begins in any::<bool>(),
    ) {
        let check = Check { rise, fall, ..Check::new(CheckKind::Tcp) };
        let mut state = CheckState::new(begins);
        for (at, good) in probes.iter().enumerate() {
            let before = state.is_healthy();
            let changed = state.note(*good, &check);
            prop_assert_eq!(changed, before != state.is_healthy());
            let needed = if before { fall } else { rise } as usize;
            let row = probes[..=at].iter().rev().take_while(|probe| *probe == good).count();
            prop_assert!(!changed || (*good != before && row >= needed));
            // A row that is long enough always leads there, whatever was before.
            let enough = if *good { rise } else { fall } as usize;
            prop_assert!(row < enough || state.is_healthy() == *good);
        }
    }

    #[test]
    fn an_ejection_is_earned_bounded_and_over_in_time(settings in settings(), story in story()) {
        let mut state = EjectionState::default();
        let mut now = Duration::ZERO;
        let mut refused_in_a_row = 0;
        for (wait, accepted, refused) in story {
            now += Duration::from_millis(wait);
            let moment = Moment(now);
            let before = state.current();
            let over = state.due().is_some_and(|due| due <= moment);
            prop_assert_eq!(state.tick(moment, &settings), over);
            let was_in = state.current().is_none();
            refused_in_a_row = if accepted > 0 { 0 } else { refused_in_a_row + refused };
            state.note(Seen { accepted, refused }, moment, &settings);
            if let Some((time, count)) = state.current() {
                if was_in {
                    prop_assert!(count >= u64::from(settings.refused) && accepted == 0);
                    prop_assert!(refused_in_a_row >= count, "{} {}", refused_in_a_row, count);
                    prop_assert_eq!(state.due(), Some(Moment(now + time)));
                } else {
                    prop_assert_eq!(state.current(), before);
                }
                prop_assert!(time >= settings.time);
                prop_assert!(time <= Ejection::LONGEST.max(settings.time));
                refused_in_a_row = 0;
            }
            prop_assert!(accepted == 0 || refused > 0 || state.current().is_none());
        }
        // Left alone, everybody comes back.
        if let Some(due) = state.due() {
            prop_assert!(state.tick(due, &settings));
        }
        prop_assert_eq!(state.current(), None);
    }

    #[test]
    fn never_fewer_are_left_than_the_panic_threshold_says(
        settings in settings(),
        all in 0..200_usize,
        out in 0..200_usize,
        ejected in 0..200_usize,
    ) {
        let left = all.saturating_sub(out + ejected);
        let enough = left * 100 >= all * usize::from(settings.panic);
        prop_assert_eq!(spares(all, out, ejected, &settings), !enough);
    }
}
