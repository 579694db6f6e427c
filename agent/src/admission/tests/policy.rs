//! What the operator's policy denies, for good or until it opens.

use tropa_proto::permit::{Denial, Rule};

use super::*;

#[test]
fn what_the_policy_denies_is_refused_before_anything_else_and_not_kept() {
    let denial = Denial { rule: Rule::Model, why: "big is asked, permitted: tiny".to_owned() };
    let (mut admission, at) = busy(1);
    let runner = Err(Unfit::Denied(denial.clone()));
    let order = Event::Run { key: key(1, 9), incarnation: ME, runner, at_once: 1, room: false };
    let actions = admission.handle(order, at);
    assert_eq!(actions, [Action::Refuse(key(1, 9), Refusal::Denied(denial.text()))], "busy or not");
    assert!(!admission.knows(&key(1, 9)));
}

#[test]
fn outside_its_hours_nothing_new_is_taken_what_waits_goes_back_and_what_runs_goes_on() {
    let denial = Denial { rule: Rule::Hours, why: "it opens at six".to_owned() };
    let refused = |key| Action::Refuse(key, Refusal::Denied(denial.text()));
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    assert_eq!(admission.handle(Event::Shut(Some(denial.clone())), at), [refused(key(1, 2))]);
    assert_eq!(admission.handle(run(key(1, 3), "m"), at), [refused(key(1, 3))]);
    assert_eq!(admission.running(), 1);
    admission.handle(Event::Shut(None), at);
    for over in [2, 3] {
        assert_eq!(admission.handle(run(key(1, over), "m"), at), [refused(key(1, over))], "it is over");
    }
    assert_eq!(admission.handle(run(key(1, 4), "m"), at), [Action::Accept(key(1, 4), Place::Next)]);
}

#[test]
fn where_as_many_have_started_as_may_in_an_hour_the_next_is_denied_by_name() {
    let (mut admission, at) = (Admission::new(ME, 1).with_rate(2), now());
    for peer in [1, 2] {
        let actions = admission.handle(run(key(peer, 1), "m"), at);
        assert!(!actions.iter().any(|action| matches!(action, Action::Refuse(..))), "{actions:?}");
    }
    let actions = admission.handle(run(key(3, 1), "m"), at);
    let [Action::Refuse(_, Refusal::Denied(rule))] = &*actions else { panic!("{actions:?}") };
    assert_eq!(Rule::of(rule), Some(Rule::Rate), "what waits will start");
    assert_eq!(admission.used_up_until(at), None);
}
