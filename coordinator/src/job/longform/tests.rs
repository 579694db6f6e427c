//! The graphs and prompts of long texts, and the texts made of the answers.

use super::*;
use crate::job::graph::Piece;

fn wish(topic: &str, parts: u32) -> Wish {
    Wish { topic: topic.to_owned(), length: Length { words: None, parts: Some(parts) }, ..Wish::default() }
}

/// A graph in lines: a node's name, its limit, and what it builds on.
fn shape(text: &LongText) -> Vec<String> {
    let line = |node: &Node| {
        let pieces = node.messages.iter().flat_map(|message| &message.content);
        let needs = pieces.filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Answer(NodeIndex(on)) => Some(format!(" <- {on}")),
            Piece::Tail { node: NodeIndex(on), bytes } => Some(format!(" <- end of {on} ({bytes})")),
        });
        format!("{} ({}){}", node.name, node.num_predict, needs.collect::<String>())
    };
    text.graph.nodes().iter().map(line).collect()
}

/// What a node is asked, with answers as `{n}`.
fn asked(text: &LongText, node: usize) -> String {
    let messages = text.graph.nodes()[node].messages.iter().map(|message| {
        let content = message.content.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Answer(NodeIndex(on)) => format!("{{{on}}}"),
            Piece::Tail { node: NodeIndex(on), .. } => format!("{{end of {on}}}"),
        });
        format!("{:?}: {}\n", message.role, content.collect::<String>())
    });
    messages.collect()
}

fn done(text: &str) -> Answer {
    Answer::Done { text: text.to_owned(), cut: false }
}

#[test]
fn the_first_part_is_alone_then_come_the_others_and_the_synthesis_last() {
    let text = plan(&wish("llamas", 4)).unwrap();
    assert_eq!(
        shape(&text),
        [
            "part 1 of 4 (856)",
            "part 2 of 4 (856) <- 0",
            "part 3 of 4 (856) <- 0",
            "part 4 of 4 (856) <- 0",
            "synthesis (856) <- 0 <- 1 <- 2 <- 3",
        ]
    );
    assert_eq!(text.graph.depth(), 3);
    let parts = (1..=4).map(Section::Part);
    assert_eq!(text.layout.sections, parts.chain([Section::Synthesis {}]).collect::<Vec<_>>());
    assert_eq!(text.notes, Vec::<String>::new());
}

#[test]
fn a_story_is_a_chain_of_bounded_ends() {
    let story = Wish { content: Some(Content::Story), ..wish("a llama that is lost", 3) };
    let text = plan(&story).unwrap();
    assert_eq!(
        shape(&text),
        [
            "part 1 of 3 (1156)",
            "part 2 of 3 (1156) <- end of 0 (2000)",
            "part 3 of 3 (1156) <- end of 1 (2000)",
        ]
    );
    assert_eq!(text.notes, ["no synthesis: a story ends with its last part"]);
    assert!(asked(&text, 1).contains("a setback that changes what is at stake"), "{}", asked(&text, 1));
    assert!(asked(&text, 2).ends_with("Bring the story to its end.\n"), "{}", asked(&text, 2));
}

#[test]
fn with_an_outline_all_parts_are_written_at_once() {
    let story = Wish { content: Some(Content::Story), outline: true, ..wish("a llama that is lost", 3) };
    let text = plan(&story).unwrap();
    assert_eq!(
        shape(&text),
        ["outline (320)", "part 1 of 3 (1156) <- 0", "part 2 of 3 (1156) <- 0", "part 3 of 3 (1156) <- 0",]
    );
    assert_eq!(text.graph.depth(), 2);
    let report = plan(&Wish { outline: true, ..wish("llamas", 2) }).unwrap();
    assert_eq!(shape(&report)[3], "synthesis (856) <- 1 <- 2");
}

#[test]
fn more_parts_than_a_kind_of_text_has_foci_take_an_outline() {
    let text = plan(&wish("llamas", 20)).unwrap();
    assert_eq!((text.graph.nodes().len(), shape(&text)[0].as_str()), (22, "outline (1408)"));
    assert_eq!(text.notes, ["20 parts are more than general has by itself, so an outline comes first"]);
    assert!(plan(&wish("llamas", LARGEST_PARTS)).is_ok());
}

#[test]
fn one_part_stands_alone() {
    let text = plan(&Wish { topic: "What is 2+2?".to_owned(), ..Wish::default() }).unwrap();
    assert_eq!(shape(&text), ["part 1 of 1 (856)"]);
    assert_eq!(text.notes, ["one part: a short question, and no length or --type was asked for"]);
    assert_eq!(document(&text.layout, &[done(" 4\n")]), "4\n");
    let outlined = plan(&Wish { outline: true, ..wish("llamas", 1) }).unwrap();
    assert_eq!((shape(&outlined).len(), outlined.notes), (1, vec!["one part needs no outline".to_owned()]));
}

#[test]
fn the_parts_share_all_but_their_own_line() {
    let text = plan(&wish("llamas", 3)).unwrap();
    let [two, three] = [1, 2].map(|node| asked(&text, node));
    let shared = two.bytes().zip(three.bytes()).take_while(|(a, b)| a == b).count();
    assert_eq!(&two[..shared], &asked(&text, 1)[..two.find("2 of 3").unwrap()]);
    assert_eq!(
        two,
        "System: You write a text together with others: it has 3 parts, and you are asked for one at a time. Write in \
         the language of the topic. Answer with the text itself and nothing else: no remarks about the task, no \
         greeting, no offer to go on.\n\
         User: The topic:\n\nllamas\n\nThe parts:\n\n1. what it is about and why it matters\n\
         2. the main points, each with its reason\n3. examples that show it\n\nPart 1 reads:\n\n{0}\n\n\
         Write part 2 of 3: the main points, each with its reason. About 400 words. Begin with a short heading, written \
         `## Heading`. Repeat nothing of part 1, and leave to the other parts what is theirs.\n"
    );
}

#[test]
fn what_the_user_says_to_all_comes_before_what_every_part_is_told() {
    let told = plan(&Wish { system: Some("Write as a pirate.".to_owned()), ..wish("llamas", 3) }).unwrap();
    for node in 0..4 {
        assert!(asked(&told, node).starts_with("System: Write as a pirate.\n\nYou write a text together"));
    }
}

#[test]
fn a_synthesis_that_would_not_fit_is_left_out_with_its_reason_and_one_that_fits_is_not() {
    let need = plan(&wish("llamas", 3)).unwrap().graph.largest_context(Density::default());
    let fits =
        |context: u64| plan(&Wish { context: u32::try_from(context).ok(), ..wish("llamas", 3) }).unwrap();
    assert_eq!(fits(need).layout.sections.len(), 4);
    let text = fits(need - 1);
    assert_eq!((text.layout.sections.len(), text.graph.nodes().len()), (3, 3));
    assert!(text.notes[0].contains(&format!("a context of {need} tokens")), "{:?}", text.notes);
    let no = plan(&Wish { no_synthesis: true, ..wish("llamas", 3) }).unwrap();
    assert_eq!((no.graph.nodes().len(), no.notes.len()), (3, 0));
    let long = plan(&Wish { max_tokens: Some(100_000), ..wish("llamas", 3) }).unwrap();
    assert!(long.notes[0].contains("one request"), "{:?}", long.notes);
}

#[test]
fn parts_are_held_to_what_the_context_takes_unless_the_user_said_otherwise() {
    for (content, outline) in [(Content::General, false), (Content::General, true), (Content::Story, false)] {
        let small = Wish { content: Some(content), outline, context: Some(2048), ..wish("llamas", 3) };
        let text = plan(&small).unwrap();
        let parts = text.graph.largest_context(Density::default());
        let held = text.graph.nodes().last().unwrap().num_predict;
        let note = format!("each part is held to {held} tokens: the context is 2048");
        let said = text.notes.iter().filter(|said| **said == note).count();
        assert_eq!((said, parts >= 1900), if outline { (0, false) } else { (1, true) }, "{text:?}");
        assert!(parts <= 2048, "{content:?} {outline}: {parts}");
    }
    let told = Wish { max_tokens: Some(900), context: Some(2048), ..wish("llamas", 3) };
    assert_eq!(plan(&told).unwrap().graph.nodes()[0].num_predict, 900);
    let tiny = plan(&Wish { context: Some(300), ..wish("llamas", 3) }).unwrap();
    assert!(tiny.graph.nodes().iter().all(|node| node.num_predict == 64), "{:?}", tiny.notes);
}

#[test]
fn the_usual_length_of_every_kind_has_its_synthesis_in_a_context_of_8192() {
    for content in Content::ALL.into_iter().filter(|content| *content != Content::Story) {
        let usual = Wish {
            topic: "llamas ".repeat(20),
            content: Some(content),
            context: Some(8192),
            ..Wish::default()
        };
        let text = plan(&usual).unwrap();
        assert_eq!(
            text.layout.sections.last(),
            Some(&Section::Synthesis {}),
            "{content:?}: {:?}",
            text.notes
        );
        assert_eq!(text.notes, Vec::<String>::new());
    }
}

#[test]
fn what_cannot_be_a_topic_is_refused() {
    assert!(plan(&wish(" \n", 3)).unwrap_err().to_string().contains("is empty"));
    assert!(plan(&wish(&"x".repeat(LARGEST_TOPIC + 1), 3)).unwrap_err().to_string().contains("tropa map"));
    assert!(plan(&wish(&"x".repeat(LARGEST_TOPIC), 3)).is_ok());
}

#[test]
fn the_text_stands_in_order_and_says_what_is_missing() {
    let text = plan(&wish("# Llamas\nand more", 3)).unwrap();
    let failed = Answer::Failed { class: "load_failed".to_owned(), message: "no\nmemory".to_owned() };
    let need = Answer::Failed { class: "need_failed".to_owned(), message: "part 2 of 3 failed".to_owned() };
    let answers = [done("## Wool\n\nSoft.\n"), failed, done("It rains."), need];
    assert_eq!(
        document(&text.layout, &answers),
        "# Llamas\n\n## Wool\n\nSoft.\n\n> **part 2 is missing** (load_failed): no memory\n\n## 3\n\nIt rains.\n\n\
         > **synthesis is missing** (need_failed): part 2 of 3 failed\n"
    );
    assert!(document(&text.layout, &answers[..1]).contains("> **part 2 is not written yet**"));
    let whole = [done("a"), done("b"), done("c"), done("So.")];
    assert!(document(&text.layout, &whole).ends_with("## 3\n\nc\n\n---\n\nSo.\n"));
}

#[test]
fn what_a_node_is_for_comes_back_from_its_metadata() {
    let outlined = plan(&Wish { outline: true, ..wish("llamas", 2) }).unwrap();
    let metadata = outlined.graph.nodes().iter().map(|node| node.metadata.clone());
    let metadata: Vec<_> = metadata.collect();
    assert_eq!(
        serde_json::to_string(&metadata).unwrap(),
        r#"[{"outline":{"parts":2}},{"part":1},{"part":2},{"synthesis":{}}]"#
    );
    let read: Vec<Section> = metadata.iter().filter_map(Section::from_metadata).collect();
    assert_eq!(read, outlined.layout.sections);
    for other in ["{}", r#"{"part":"x"}"#, r#"{"part":1,"outline":{}}"#, r#"{"town":"Puno"}"#] {
        assert_eq!(Section::from_metadata(&serde_json::from_str(other).unwrap()), None, "{other}");
    }
}

#[test]
fn checks_see_what_is_empty_cut_circling_repeated_and_nothing_else() {
    let text = plan(&Wish { outline: true, ..wish("llamas", 4) }).unwrap();
    let words: Vec<String> = (0..200).map(|n: u32| format!("w{}", n.wrapping_mul(2_654_435_761))).collect();
    let first = words[..100].join(" ");
    let again = format!("{} {}", words[20..100].join("\n").to_uppercase(), words[100..140].join(" "));
    let answers = [
        done("1. one\n2) two\n- 3: three"),
        done(&first),
        Answer::Done { text: again, cut: true },
        done(" \n"),
        done(&"over and over ".repeat(30)),
        done("All of it."),
    ];
    let codes = |answers: &[Answer]| -> Vec<String> {
        findings(&text.layout, answers).iter().map(|found| format!("{found}")).collect()
    };
    assert_eq!(
        codes(&answers),
        [
            "outline.short: the outline has 3 points for 4 parts",
            "text.cut: part 2 reached its limit of tokens before its end; raise --max-tokens",
            "text.repeats: 66 % of part 2 stands in part 1 already",
            "text.empty: part 3 is empty; try another model or a higher --max-tokens",
            "text.circles: part 4 says the same again and again",
        ]
    );
    let fine = [
        done("1. a\n2. b\n3. c\n٤. d"),
        done(&first),
        done(&words[100..].join(" ")),
        done("short"),
        done("x"),
    ];
    assert_eq!(codes(&fine), Vec::<String>::new());
}
