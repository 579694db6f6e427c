//! The graphs of panels, the errors of their files, their votes and what they come to.

use super::*;
use crate::job::{
    Answer,
    graph::{Node, NodeIndex, Piece},
};

fn wish(cast: Cast) -> Wish {
    Wish {
        question: "Why do llamas hum?".to_owned(),
        cast,
        max_tokens: 512,
        system: None,
        temperature: None,
        models: Vec::new(),
    }
}

fn built_in(cast: BuiltIn) -> Panel {
    plan(&wish(Cast::BuiltIn(cast))).unwrap()
}

fn from_file(text: &str) -> Result<Panel, String> {
    plan(&wish(Cast::File(text.to_owned()))).map_err(|error| error.to_string())
}

/// A graph in lines: a node's name, its limit, and what it builds on.
fn shape(panel: &Panel) -> Vec<String> {
    let line = |node: &Node| {
        let needs: String = node.needs().iter().map(|NodeIndex(on)| format!(" <- {on}")).collect();
        format!("{} ({}){needs}", node.name, node.num_predict)
    };
    panel.graph.nodes().iter().map(line).collect()
}

/// What a node is asked by its last message, with answers as `{n}`.
fn asked(panel: &Panel, node: usize) -> String {
    let message = panel.graph.nodes()[node].messages.last().unwrap();
    let content = message.content.iter().map(|piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Answer(NodeIndex(on)) => format!("{{{on}}}"),
        Piece::Tail { .. } => unreachable!("panels read whole answers"),
    });
    content.collect()
}

fn done(text: &str) -> Answer {
    Answer::Done { text: text.to_owned(), cut: false }
}

#[test]
fn a_researcher_a_critic_and_an_editor_in_a_row() {
    let panel = built_in(BuiltIn::default());
    assert_eq!(shape(&panel), ["researcher (512)", "critic (512) <- 0", "editor (512) <- 0 <- 1"]);
    assert_eq!((panel.graph.depth(), panel.layout.answer), (3, 2));
    assert!(asked(&panel, 2).contains("An answer to it:\n\n{0}\n\nWhat critics say of it:\n\n{1}\n\n"));
}

#[test]
fn critics_answer_at_once_and_rounds_one_after_the_other() {
    let panel = built_in(BuiltIn { critics: Some(2), rounds: Some(2), ..BuiltIn::default() });
    assert_eq!(
        shape(&panel),
        [
            "researcher (512)",
            "critic 1, round 1 (512) <- 0",
            "critic 2, round 1 (512) <- 0",
            "editor, round 1 (512) <- 0 <- 1 <- 2",
            "critic 1, round 2 (512) <- 3",
            "critic 2, round 2 (512) <- 3",
            "editor, round 2 (512) <- 3 <- 4 <- 5",
        ]
    );
    assert_eq!(panel.graph.depth(), 5);
    assert_ne!(asked(&panel, 1), asked(&panel, 2), "each looks for something else");
    assert!(asked(&panel, 3).contains("[1]\n{1}\n\n[2]\n{2}"), "{}", asked(&panel, 3));
}

#[test]
fn ideas_come_at_once_and_are_chosen_from_then_mended_if_asked() {
    let panel = built_in(BuiltIn { brainstorm: Some(3), ..BuiltIn::default() });
    assert_eq!(
        shape(&panel),
        ["idea 1 (512)", "idea 2 (512)", "idea 3 (512)", "choice (512) <- 0 <- 1 <- 2"]
    );
    let panel = built_in(BuiltIn { brainstorm: Some(2), critics: Some(1), ..BuiltIn::default() });
    assert_eq!(shape(&panel)[3..], ["critic (512) <- 2", "editor (512) <- 2 <- 3"]);
    let many = built_in(BuiltIn { brainstorm: Some(LARGEST_REPEATS), ..BuiltIn::default() });
    let asked: std::collections::BTreeSet<String> = (0..64).map(|node| asked(&many, node)).collect();
    assert_eq!(asked.len(), 64, "no two are asked the same");
}

#[test]
fn voters_see_the_answers_in_turn_first_and_keep_to_a_schema() {
    let panel = built_in(BuiltIn { vote: Some(4), ..BuiltIn::default() });
    assert_eq!(shape(&panel)[3..5], ["voter 1 (48) <- 0 <- 1 <- 2", "voter 2 (48) <- 0 <- 1 <- 2"]);
    assert!(asked(&panel, 3).contains("[1]\n{0}\n\n[2]\n{1}\n\n[3]\n{2}"), "{}", asked(&panel, 3));
    assert!(asked(&panel, 4).contains("[1]\n{1}\n\n[2]\n{2}\n\n[3]\n{0}"), "{}", asked(&panel, 4));
    let orders = &panel.layout.seats[1].ballot.as_ref().unwrap().orders;
    assert_eq!(orders, &[[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    let format = panel.graph.nodes()[3].format.as_ref().unwrap();
    assert_eq!(format["properties"]["vote"]["maximum"], 3);
}

#[test]
fn votes_are_read_strictly_and_all_else_abstains() {
    for (text, expected) in [
        ("{\"vote\": 2}", Ok(1)),
        (" {\"vote\":1}\n", Ok(0)),
        ("3", Ok(2)),
        ("4", Err(Abstention::NoSuchAnswer)),
        ("0", Err(Abstention::NoSuchAnswer)),
        ("99999999999999999999", Err(Abstention::NoSuchAnswer)),
        ("{\"vote\": 7}", Err(Abstention::NoSuchAnswer)),
        ("", Err(Abstention::Unreadable)),
        ("I vote for 2", Err(Abstention::Unreadable)),
        ("2.", Err(Abstention::Unreadable)),
        ("{\"vote\": \"2\"}", Err(Abstention::Unreadable)),
        ("{\"vote\": 2.0}", Err(Abstention::Unreadable)),
        ("{\"vote\": -1}", Err(Abstention::Unreadable)),
        ("{\"vote\": 1, \"vote\": 2}", Err(Abstention::Unreadable)),
        ("{\"vote\": 1, \"why\": \"best\"}", Err(Abstention::Unreadable)),
        ("```json\n{\"vote\": 1}\n```", Err(Abstention::Unreadable)),
        ("[1]", Err(Abstention::Unreadable)),
    ] {
        assert_eq!(vote::read(text, 3), expected, "{text:?}");
    }
}

#[test]
fn votes_count_for_the_answer_that_was_seen_under_the_number() {
    let panel = built_in(BuiltIn { vote: Some(5), ..BuiltIn::default() });
    let failed = Answer::Failed { class: "poison".to_owned(), message: "no".to_owned() };
    let mut answers = vec![done("first"), done("second"), done("third")];
    // The second voter saw the third answer as its second, the third voter as its first.
    answers.extend([done("{\"vote\": 1}"), done("2"), done("{\"vote\":1}"), done("the best"), failed]);
    let [tally] = tallies(&panel.layout, &answers).try_into().unwrap();
    assert_eq!((tally.counts.as_slice(), tally.chosen()), (&[1, 0, 2][..], Some(2)));
    assert_eq!(
        tally.sentence(),
        "votes: idea 1: 1, idea 2: 0, idea 3: 2; 1 counted as abstention (unreadable); 1 counted as abstention \
         (failed); idea 3 is chosen"
    );
    assert_eq!(outcome(&panel.layout, &answers), "third\n");
    assert!(proceedings(&panel.layout, &answers).contains("## voter 4\n\nthe best\n\n"));
    assert_eq!((&tally.json()["chosen"], &tally.json()["abstentions"]["unreadable"]), (&3.into(), &1.into()));

    answers[5] = done("none of them");
    answers[4] = done("1");
    let [tie] = tallies(&panel.layout, &answers).try_into().unwrap();
    assert_eq!((tie.counts.as_slice(), tie.best(), tie.chosen()), (&[1, 1, 0][..], vec![0, 1], Some(0)));
    assert!(tie.sentence().ends_with("a tie, and the first of it is chosen: idea 1"));

    let nobody: Vec<Answer> = (0..8).map(|_| done("?")).collect();
    assert!(outcome(&panel.layout, &nobody).starts_with("> **no answer was chosen**: votes:"));
    assert_eq!(tallies(&panel.layout, &nobody)[0].chosen(), None);
    assert_eq!(tallies(&panel.layout, &answers[..6])[0].chosen(), None, "not before all have voted");
}

#[test]
fn the_outcome_says_what_is_missing() {
    let panel = built_in(BuiltIn { critics: Some(2), ..BuiltIn::default() });
    let need = Answer::Failed { class: "need_failed".to_owned(), message: "critic 2\nfailed".to_owned() };
    let answers = [done("a draft"), done("good"), need.clone(), need];
    assert_eq!(
        outcome(&panel.layout, &answers),
        "> **the answer of editor is missing** (need_failed): critic 2 failed\n"
    );
    let all = proceedings(&panel.layout, &answers[..2]);
    assert_eq!(
        all,
        "## researcher\n\na draft\n\n## critic 1\n\ngood\n\n## critic 2\n\n> **critic 2 has not answered yet**\n\n\
         ## editor\n\n> **editor has not answered yet**\n"
    );
}

const FILE: &str = r#"
[[role]]
name = "editor"
system = "You are brief."
max-tokens = 300
prompt = """
{{question}}
Answers:
{{answer:thinker}}
{{ answer:judge }}"""

[[role]]
name = "thinker"
model = "llama3.2:3b"
repeats = 2
temperature = 1
prompt = "{{number}} of {{repeats}}: {{question}}"

[[role]]
name = "judge"
prompt = "{{candidates}}"
vote = "thinker"
repeats = 3
"#;

#[test]
fn a_file_gives_roles_in_the_order_of_their_needs() {
    let panel = from_file(FILE).unwrap();
    assert_eq!(
        shape(&panel),
        [
            "thinker 1 (512)",
            "thinker 2 (512)",
            "judge 1 (48) <- 0 <- 1",
            "judge 2 (48) <- 0 <- 1",
            "judge 3 (48) <- 0 <- 1",
            "editor (300) <- 0 <- 1 <- 2 <- 3 <- 4",
        ]
    );
    assert_eq!(asked(&panel, 1), "2 of 2: Why do llamas hum?");
    assert_eq!(
        asked(&panel, 5),
        "Why do llamas hum?\nAnswers:\n[1]\n{0}\n\n[2]\n{1}\n[1]\n{2}\n\n[2]\n{3}\n\n[3]\n{4}"
    );
    let node = &panel.graph.nodes()[0];
    assert_eq!((node.model.as_deref(), node.temperature), (Some("llama3.2:3b"), Some(1.0)));
    // The last role of the file, unless it says another.
    assert_eq!(panel.layout.seats[panel.layout.answer].name, "judge");
    let panel = from_file(&format!("answer = \"editor\"\n{FILE}")).unwrap();
    assert_eq!(panel.layout.seats[panel.layout.answer].name, "editor");
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line_and_a_remedy() {
    let with = |old: &str, new: &str| {
        assert!(FILE.contains(old), "{old}");
        from_file(&FILE.replace(old, new)).unwrap_err()
    };
    for (error, parts) in [
        (with("system =", "sytem ="), &["line 4: ", "`sytem`", "`system`"][..]),
        (with("[[role]]\nname = \"judge\"", "[[rolle]]\nname = \"judge\""), &["line 19", "`rolle`"]),
        (with("name = \"editor\"", "nome = \"editor\""), &["`nome`"]),
        (with("max-tokens = 300", "max-tokens = 0"), &["line 5: `max-tokens` is 0", "from 1 to 1000000"]),
        (with("repeats = 2", "repeats = 65"), &["line 15: `repeats` is 65", "from 1 to 64"]),
        (with("repeats = 2", "repeats = \"two\""), &["line 15: ", "two"]),
        (with("temperature = 1", "temperature = -1.5"), &["line 16: `temperature` is -1.5"]),
        (with("name = \"editor\"", "name = \"the editor\""), &["line 3: `the editor` is no name"]),
        (with("name = \"judge\"", "name = \"thinker\""), &["line 20: ", "`thinker` again; line 13"]),
        (with("{{answer:thinker}}", "{{answer:thinkr}}"), &["line 9: ", "`thinkr`", "judge, thinker"]),
        (
            with("{{answer:thinker}}", "{{answers:thinker}}"),
            &["line 9: `{{answers:thinker}}`", "{{answer:ROLE}}"],
        ),
        (with("{{ answer:judge }}", "{{answer:judge"), &["line 10: ", "has no `}}`"]),
        (with("{{candidates}}", "vote"), &["line 22: ", "does not show on what", "{{candidates}}"]),
        (with("vote = \"thinker\"", "vote = \"editor\""), &["line 22: ", "single answer of `editor`"]),
        (with("vote = \"thinker\"", "vote = \"nobody\""), &["line 22: ", "`nobody`", "take one of"]),
        (with("vote = \"thinker\"\n", ""), &["line 21: ", "does not vote", "vote = "]),
        (with("llama3.2:3b", "big:cloud"), &["line 14: ", "cloud"]),
        (with("prompt = \"{{candidates}}\"", "prompt = \" \""), &["line 21: the prompt of `judge` is empty"]),
        (
            with("{{repeats}}: {{question}}", "{{repeats}}: {{answer:editor}}"),
            &["line 3: ", "editor needs judge needs thinker needs editor"],
        ),
        (with("{{number}}", "{{answer:thinker}}"), &["line 13: ", "thinker needs thinker"]),
        (
            FILE.replace("{{question}}", "it").pipe(|text| from_file(&text).unwrap_err()),
            &["no prompt has {{question}}"],
        ),
        (
            from_file("answer = \"x\"\n[[role]]\nname=\"a\"\nprompt=\"{{question}}\"").unwrap_err(),
            &["line 1: `answer` names `x`", "one of a"],
        ),
        (from_file("").unwrap_err(), &["0 roles", "[[role]]"]),
        (from_file("[[role]\n").unwrap_err(), &["line 1: "]),
    ] {
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        assert!(error.contains("; "), "a remedy: {error}");
    }
}

trait Pipe: Sized {
    fn pipe<T>(self, function: impl FnOnce(Self) -> T) -> T {
        function(self)
    }
}
impl Pipe for String {}

#[test]
fn a_file_that_is_too_much_is_refused() {
    let role = |n: usize| format!("[[role]]\nname = \"r{n}\"\nprompt = \"{{{{question}}}}\"\n");
    let many: String = (0..=LARGEST_ROLES).map(role).collect();
    assert!(from_file(&many).unwrap_err().contains("65 roles"));
    let long = format!("{}# {}", role(0), "x".repeat(LARGEST_FILE));
    assert!(from_file(&long).unwrap_err().contains("at most"));
    // 64 roles of 64 answers that all read all: 64 × 64 needs are as many as one answer may build on.
    let reads: String = (0..63).map(|n| format!("{{{{answer:r{n}}}}}")).collect();
    let roles: String = (0..63).map(|n| role(n) + "repeats = 64\n").collect();
    let last = format!("[[role]]\nname = \"all\"\nprompt = \"{reads}\"\n");
    assert_eq!(from_file(&(roles + &last)).unwrap().graph.nodes().len(), 63 * 64 + 1);
}

#[test]
fn a_role_may_have_a_model_of_its_own() {
    let models = vec![("critic".to_owned(), "big:70b".to_owned())];
    let cast = Cast::BuiltIn(BuiltIn { critics: Some(2), rounds: Some(2), ..BuiltIn::default() });
    let panel = plan(&Wish { models, ..wish(cast.clone()) }).unwrap();
    let of: Vec<Option<&str>> = panel.graph.nodes().iter().map(|node| node.model.as_deref()).collect();
    assert_eq!(of, [None, Some("big:70b"), Some("big:70b"), None, Some("big:70b"), Some("big:70b"), None]);
    let models = vec![("critik".to_owned(), "big:70b".to_owned())];
    let error = plan(&Wish { models, ..wish(cast) }).unwrap_err().to_string();
    assert_eq!(error, "no role is called `critik`; take one of critic, editor, researcher");
}

#[test]
fn what_the_user_says_to_all_reaches_all() {
    let cast = Cast::BuiltIn(BuiltIn { brainstorm: Some(2), ..BuiltIn::default() });
    let told = Wish { system: Some("Be {{kind}}.".to_owned()), temperature: Some(0.2), ..wish(cast.clone()) };
    for (told, plain) in
        plan(&told).unwrap().graph.nodes().iter().zip(plan(&wish(cast)).unwrap().graph.nodes())
    {
        let system = |node: &Node| match node.messages[0].content.as_slice() {
            [Piece::Text(first), ..] => first.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(system(told), "Be {{kind}}.\n\n", "and it is not a template");
        assert_eq!(told.messages[0].content[1..], plain.messages[0].content[..]);
        assert_eq!(told.temperature, None, "the job's own counts");
    }
}

#[test]
fn what_cannot_be_a_question_is_refused() {
    let ask = |question: &str| {
        plan(&Wish { question: question.to_owned(), ..wish(Cast::BuiltIn(BuiltIn::default())) })
    };
    assert!(ask(" \n").unwrap_err().to_string().contains("is empty"));
    assert!(ask(&"x".repeat(LARGEST_QUESTION + 1)).unwrap_err().to_string().contains("tropa map"));
    let question = "{{answer:editor}} \"\\";
    assert!(asked(&ask(question).unwrap(), 0).contains(question), "a question is not a template");
}

#[test]
fn a_layout_comes_back_from_the_journal_as_it_was() {
    for cast in
        [BuiltIn { vote: Some(2), ..BuiltIn::default() }, BuiltIn { rounds: Some(2), ..BuiltIn::default() }]
    {
        let layout = built_in(cast).layout;
        let json = serde_json::to_string(&layout).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&json).unwrap(), layout);
    }
}

proptest::proptest! {
    /// Files of roles come from anybody.
    #[test]
    fn no_file_of_roles_makes_a_panic(
        cuts in proptest::collection::vec((0usize..600, 0usize..12, "[\\[\\]{}=\"a-z\u{e9}\n:-]{0,6}"), 1..4),
    ) {
        let mut text: Vec<char> = FILE.chars().collect();
        for (at, length, new) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, new.chars());
        }
        if let Err(error) = from_file(&text.iter().collect::<String>()) {
            proptest::prop_assert!(error.contains("; "), "a remedy: {error}");
        }
    }
}
