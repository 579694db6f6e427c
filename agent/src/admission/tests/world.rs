//! Admission as a random world with a check that did not decide.

use super::*;

/// What an observer of the actions believes, from scratch.
#[derive(Default)]
struct Observer {
    held: bool,
    asked: bool,
    settling: bool,
    must_settle: bool,
    probing: bool,
    at_engine: BTreeSet<Key>,
    ever_started: BTreeSet<Key>,
}

impl Observer {
    fn see(&mut self, actions: &[Action], width: usize) {
        for action in actions {
            match action {
                Action::Start { key, .. } => {
                    assert!(self.held, "{key:?} started without the locks");
                    assert!(!self.settling && !self.must_settle, "{key:?} started before settling");
                    assert!(!self.probing, "{key:?} started before the probe's end");
                    assert!(self.ever_started.insert(*key), "{key:?} started twice");
                    self.at_engine.insert(*key);
                    assert!(self.at_engine.len() <= width, "more than the width");
                }
                Action::Acquire => {
                    assert!(!self.held && !self.asked);
                    self.asked = true;
                }
                Action::Release => {
                    assert!(
                        self.at_engine.is_empty() && !self.settling && !self.must_settle && !self.probing
                    );
                    (self.held, self.asked) = (false, false);
                }
                Action::Settle => {
                    assert!(self.held && !self.settling && !self.probing);
                    (self.settling, self.must_settle) = (true, false);
                }
                Action::Probe => {
                    assert!(self.held && !self.settling && !self.must_settle && !self.probing);
                    assert!(self.at_engine.is_empty(), "the probe would be one more than the width");
                    self.probing = true;
                }
                Action::HangUp(key) => assert!(self.at_engine.contains(key)),
                Action::Accept(..)
                | Action::Refuse(..)
                | Action::Fail(..)
                | Action::Deliver(_)
                | Action::Discard(_) => {}
            }
        }
    }
}

#[test]
fn no_order_of_events_breaks_the_rules() {
    for seed in 0_u64..400 {
        let width = usize::try_from(seed % 3).unwrap() + 1;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        let (mut admission, mut at, mut seen) = (Admission::new(ME, width), now(), Observer::default());
        let mut checking = Vec::new();
        for _ in 0..400 {
            // In all less than an acknowledged attempt is remembered, after which it would be a new one.
            at += Duration::from_millis(next(2_500));
            let peer = u8::try_from(next(3)).unwrap();
            let some = key(peer, u32::try_from(next(60)).unwrap());
            let running = seen.at_engine.iter().next().copied();
            let event = match next(11) {
                0..=2 => run(some, ["m", "n"][usize::try_from(next(2)).unwrap()]),
                3 => Event::Cancel(some),
                10 => Event::TakeBack(some),
                4 => Event::Ack(some),
                5 => match running {
                    Some(key) => {
                        seen.at_engine.remove(&key);
                        checking.push(key);
                        let may_run = next(3) == 0;
                        seen.must_settle |= may_run;
                        Event::Ended { key, may_run }
                    }
                    None => continue,
                },
                6 => match checking.pop() {
                    Some(key) => {
                        Event::Finished(key, (next(2) == 0).then(|| failure(Reason::RunnerCrash, "x")))
                    }
                    None => continue,
                },
                7 | 9 if seen.probing => {
                    seen.probing = false;
                    let (works, may_run) = (next(2) == 0, next(3) == 0);
                    seen.must_settle |= may_run;
                    Event::Probed { works, may_run }
                }
                7 if seen.asked => {
                    (seen.held, seen.asked) = (true, false);
                    Event::LaneHeld { dirty: false }
                }
                8 if seen.settling => {
                    seen.settling = false;
                    Event::Settled
                }
                _ => Event::Tick { someone_waits: next(2) == 0, displaced: next(40) == 0 },
            };
            let told = format!("seed {seed}: {event:?}");
            let actions = admission.handle(event, at);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seen.see(&actions, width)));
            assert!(result.is_ok(), "{told} -> {actions:?}");
        }
    }
}
