//! Stop strings: exact cuts, however the text is cut into pieces.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, helpers included")]

use proptest::prelude::*;
use pyrite_sample::{MAX_STOP_BYTES, MAX_STOPS, SampleError, StopMatcher};

fn matcher(stops: &[&str]) -> StopMatcher {
    StopMatcher::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
}

/// The specification: the first end of any stop string; there the longest, then the lowest index.
fn naive(stops: &[String], text: &str) -> Option<(usize, usize)> {
    (0..=text.len()).find_map(|end| {
        let ends = |stop: &String| text.as_bytes()[..end].ends_with(stop.as_bytes());
        let found = stops.iter().enumerate().filter(|(_, stop)| ends(stop));
        let (index, stop) = found.min_by_key(|(index, stop)| (std::cmp::Reverse(stop.len()), *index))?;
        Some((end - stop.len(), index))
    })
}

fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut at, mut cut) = (Vec::new(), 0, 0);
    while at < chars.len() {
        let take = cuts[cut % cuts.len()].min(chars.len() - at);
        out.push(chars[at..at + take].iter().collect());
        at += take;
        cut += 1;
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_cut_of_every_text_gives_the_specified_match(
        stops in proptest::collection::vec("[abé🦀]{1,5}", 0..5),
        text in "[abé🦀]{0,40}",
        cuts in proptest::collection::vec(1usize..6, 1..5),
    ) {
        let mut matcher = StopMatcher::new(&stops).unwrap();
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let (mut released, mut fed, mut found) = (String::new(), 0, None);
        for piece in pieces(&text, &cuts) {
            let push = matcher.push(&piece);
            fed += piece.len();
            released.push_str(&push.released);
            if push.matched.is_some() {
                found = push.matched;
                break;
            }
            prop_assert!(fed - released.len() < longest.max(1));
        }
        match naive(&stops, &text) {
            Some((start, index)) => {
                prop_assert_eq!(found, Some(index));
                prop_assert_eq!(&released, &text[..start]);
                prop_assert_eq!(matcher.flush(), "");
                let after = matcher.push("more");
                prop_assert_eq!((after.released.as_str(), after.matched), ("", Some(index)));
            }
            None => {
                prop_assert_eq!(found, None);
                released.push_str(&matcher.flush());
                prop_assert_eq!(released, text);
            }
        }
    }
}

#[test]
fn holds_back_only_what_may_still_match() {
    let mut stop = matcher(&["STOP", "TOTAL"]);
    let push = stop.push("go TO");
    assert_eq!((push.released.as_str(), push.matched), ("go ", None));
    let push = stop.push("DAY ST");
    assert_eq!((push.released.as_str(), push.matched), ("TODAY ", None));
    let push = stop.push("OP and on");
    assert_eq!((push.released.as_str(), push.matched), ("", Some(0)));
}

#[test]
fn the_end_first_wins_and_then_the_longest() {
    assert_eq!(matcher(&["abcd", "bc"]).push("xabcd").matched, Some(1));
    let push = matcher(&["c", "abc", "bc", "abc"]).push("xabcd");
    assert_eq!((push.released.as_str(), push.matched), ("x", Some(1)));
}

#[test]
fn bad_sets_are_refused() {
    assert_eq!(
        StopMatcher::new(&["a".into(), String::new()]).map(|_| ()),
        Err(SampleError::EmptyStop { index: 1 })
    );
    let too_many = vec!["a".to_string(); MAX_STOPS + 1];
    assert!(matches!(StopMatcher::new(&too_many), Err(SampleError::StopTooLarge { .. })));
    assert!(StopMatcher::new(&too_many[1..]).is_ok());
    assert!(matches!(
        StopMatcher::new(&["a".repeat(MAX_STOP_BYTES + 1)]),
        Err(SampleError::StopTooLarge { .. })
    ));
    assert!(StopMatcher::new(&["a".repeat(MAX_STOP_BYTES)]).is_ok());
}

#[test]
fn the_worst_text_takes_linear_time() {
    // A matcher that rescans what it holds needs 10^11 steps here.
    let mut stop = StopMatcher::new(&["a".repeat(MAX_STOP_BYTES - 1) + "b"]).unwrap();
    let mut released = 0;
    for _ in 0..2_000_000 {
        released += stop.push("a").released.len();
    }
    assert_eq!(released + stop.flush().len(), 2_000_000);
}
