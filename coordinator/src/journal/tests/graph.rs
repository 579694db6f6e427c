//! Chunks that build on others.

use serde_json::{Value, json};

use super::*;
use crate::recipe::{self, Piece};

/// One chunk that feeds two, which feed the only item.
fn diamond() -> (TempDir, Journal) {
    let temp = tempfile::tempdir().unwrap();
    let journal = {
        let needs: [&[u32]; 4] = [&[], &[0], &[0], &[1, 2]];
        let chunks = (0..).zip(needs).map(|(n, needs): (u32, _)| {
            let mut pieces = vec![Piece::Text("say: ")];
            pieces.extend(needs.iter().map(|on| Piece::Answer(ChunkIndex(*on))));
            let body =
                json!({"model": "m:1b", "messages": [{"role": "user", "content": recipe::content(&pieces)}]});
            Ok::<_, Error>(NewChunk {
                endpoint: Endpoint::Chat,
                model: "m:1b".to_owned(),
                body: body.to_string().into_bytes(),
                needs: needs.iter().copied().map(ChunkIndex).collect(),
                shown: n == 3,
                origin: json!({"id": format!("node {n}")}).to_string(),
            })
        });
        let mut draft = Draft::create(&temp.path().join("jobs").join(JOB.to_string()), JOB).unwrap();
        draft.insert(chunks).unwrap();
        draft.finish(Kind::Map, b"{}".to_vec(), 7).unwrap()
    };
    (temp, journal)
}

fn answered(n: u32, text: &str) -> [Step; 2] {
    let reply = json!({"message": {"thinking": "hm", "content": text}}).to_string();
    [attempt(n, 1), result(n, 1, reply.as_bytes())]
}

fn body_of(journal: &Journal, n: u32) -> Vec<u8> {
    match journal.fill(ChunkIndex(n)).unwrap() {
        Filled::Body(body) => body,
        failed @ Filled::Failed(..) => panic!("{failed:?}"),
    }
}

#[test]
fn a_request_is_made_of_the_answers_and_is_the_same_after_reopening() {
    let (_temp, journal) = diamond();
    let needs = journal.needs().unwrap();
    assert_eq!(needs.on.len(), 3);
    assert_eq!(needs.unfilled, BTreeSet::from([ChunkIndex(1), ChunkIndex(2), ChunkIndex(3)]));
    assert!(journal.chunk(ChunkIndex(0)).is_ok(), "it builds on nothing, so its request is there");
    assert!(journal.chunk(ChunkIndex(1)).is_err(), "it has no request yet");
    assert!(journal.fill(ChunkIndex(1)).is_err(), "its need has no result yet");

    write(&journal, answered(0, "a \"llama\"").into());
    let body = body_of(&journal, 1);
    let asked: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(asked["messages"][0]["content"], "say: a \"llama\"");
    let request = Step::Request { chunk: ChunkIndex(1), body: body.clone() };
    assert_eq!(write(&journal, vec![request.clone(), request]), [Effect::First, Effect::Late]);
    let dir = journal.dir().to_owned();
    drop(journal);

    let journal = Journal::open(&dir).unwrap();
    assert_eq!(journal.chunk(ChunkIndex(1)).unwrap().body, body);
    assert_eq!(journal.needs().unwrap().unfilled, BTreeSet::from([ChunkIndex(2), ChunkIndex(3)]));
    assert_eq!((journal.job().chunks, journal.job().items), (4, 1));
    assert_eq!(journal.shown().unwrap(), Some(vec![ChunkIndex(3)]));
}

#[test]
fn a_request_that_is_not_what_its_recipe_gives_is_damage() {
    let (_temp, journal) = diamond();
    write(&journal, answered(0, "yes").into());
    let other = br#"{"model":"m:1b","messages":[{"role":"user","content":"other"}]}"#.to_vec();
    write(&journal, vec![Step::Request { chunk: ChunkIndex(1), body: other }]);
    assert!(matches!(journal.chunk(ChunkIndex(1)), Err(Error::Damaged(_))));
    journal.parts.conn.execute("DELETE FROM need WHERE idx = 2", []).unwrap();
    assert!(matches!(journal.fill(ChunkIndex(2)), Err(Error::Damaged(_))), "its hash covers what it needs");
}

#[test]
fn answers_that_do_not_fit_a_request_fail_the_chunk_and_say_so() {
    let (_temp, journal) = diamond();
    write(&journal, answered(0, &"x".repeat(MAX_BODY)).into());
    let Filled::Failed(class, why) = journal.fill(ChunkIndex(1)).unwrap() else { panic!("it does not fit") };
    assert_eq!(class, Class::TooLong);
    assert!(why.contains("at most 1048576 fit"), "{why}");
}

#[test]
fn a_failure_is_told_by_name_through_all_that_builds_on_it_and_both_run_again() {
    let (_temp, mut journal) = diamond();
    let failed =
        |n: u32, class, detail: String| Step::Failed { chunk: ChunkIndex(n), no: None, class, detail };
    write(&journal, vec![failed(0, Class::Poison, "the prompt was: secret".to_owned())]);
    let why = journal.why_need_failed(ChunkIndex(0)).unwrap();
    assert_eq!(why, "it builds on node 0, which has failed (poison)");
    write(&journal, vec![failed(1, Class::NeedFailed, why)]);
    let why = journal.why_need_failed(ChunkIndex(1)).unwrap();
    assert_eq!(
        why,
        "it builds on node 1, which has failed (need_failed): it builds on node 0, which has failed (poison)"
    );
    write(&journal, vec![failed(3, Class::NeedFailed, why)]);
    let totals = journal.totals().unwrap();
    assert_eq!(totals.failed.values().sum::<u32>(), 1, "one item has failed");
    assert_eq!(totals.inner_failed.values().sum::<u32>(), 2);
    let JobState::Whole { items, chunks, failed, .. } =
        list(journal.dir().parent().unwrap()).unwrap()[0].state
    else {
        panic!("a whole job")
    };
    assert_eq!((items, chunks, failed), (1, 4, 1));
    assert_eq!(journal.retry_failed().unwrap(), 3);
    assert_eq!(journal.load().unwrap().finished.failed(), 0);
}
