//! What is read from a file of rules, what each comes to among who is here, and what is wrong with it.

use super::*;
use tropa_proto::{
    bounded::{List, Text},
    evidence::{Attribution, Os},
    fuse::Rule,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rule: Vec<Spanned<Said>>,
}

fn book(text: &str) -> Book {
    let file: File = toml::from_str(text).unwrap();
    Book::new(file.rule, text, PathBuf::from("config.toml"), Some(1_000)).unwrap()
}

fn id(n: u8) -> AgentId {
    AgentId([n; 32])
}

fn standings(rows: &[RuleRow]) -> Vec<&Standing> {
    rows.iter().map(|row| &row.standing).collect()
}

#[test]
fn rules_name_agents_by_label_or_by_the_beginning_of_an_id() {
    let text = "[[rule]]\nsame = [\"den\", \"a-0202\"]\n\n[[rule]]\ndistinct = [\"den\", \"03\"]\n\
                    [[rule]]\nname = { agent = \"den\", name = \"desk\" }\n[[rule]]\nignore = \"mac:1b2c\"\n";
    let known = [(id(1), "den", None), (id(2), "attic", None), (id(3), "shed", None)];
    let (rules, rows) = book(text).resolve(&known);
    assert_eq!(rules.pairs, BTreeSet::from([(id(1), id(2), Rule::Same), (id(1), id(3), Rule::Distinct)]));
    assert_eq!(rules.names[&id(1)], "desk");
    assert_eq!(rules.ignore.len(), 1);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 4, 6, 8]);
    assert!(standings(&rows).iter().all(|standing| **standing == Standing::Followed));
}

#[test]
fn a_label_goes_before_an_id_and_an_ambiguous_name_is_not_followed() {
    let text = "[[rule]]\nsame = [\"0202\", \"den\"]\n[[rule]]\nsame = [\"twin\", \"den\"]\n";
    let known = [(id(1), "den", None), (id(2), "twin", None), (id(3), "0202", None), (id(4), "twin", None)];
    let (rules, rows) = book(text).resolve(&known);
    assert_eq!(rules.pairs, BTreeSet::from([(id(1), id(3), Rule::Same)]));
    assert!(matches!(&rows[1].standing, Standing::NotFollowed(why) if why.contains("twin may be a-0202")));
}

#[test]
fn a_rule_about_who_is_not_here_waits_and_counts_for_those_who_are() {
    let text = "[[rule]]\nsame = [\"den\", \"gone\", \"attic\"]\n[[rule]]\nname = { agent = \"gone\", name = \"x\" }\n";
    let (rules, rows) = book(text).resolve(&[(id(1), "den", None), (id(2), "attic", None)]);
    assert_eq!(rules.pairs.len(), 1);
    assert!(rows.iter().all(|row| matches!(&row.standing, Standing::Waits(why) if why.contains("gone"))));
}

#[test]
fn a_lane_is_looked_up_among_the_devices_that_the_agent_found() {
    let mut evidence = Evidence::empty(Os::Linux);
    let gpu = |n: u8| Gpu {
        vendor: Text::cut("nvidia"),
        name: Text::default(),
        uuid: Some(Tag([n; 16])),
        kind: GpuKind::Full,
        pci: Some(Text::cut(&format!("0000:0{n}:00.0"))),
        memory: 0,
        uma: false,
    };
    evidence.gpus = List::cut(vec![gpu(1), gpu(2)]).0;
    for (devices, place) in [("gpu:1", Some(1)), ("gpu:0000:01:00.0", Some(0)), ("gpu:7", None)] {
        let text = format!("[[rule]]\nlane = {{ agent = \"den\", devices = \"{devices}\" }}\n");
        let (rules, rows) = book(&text).resolve(&[(id(1), "den", Some(&evidence))]);
        match place {
            Some(place) => {
                let claim = &rules.lanes[&id(1)];
                assert_eq!((claim.gpus.as_ref(), claim.method), (&[place][..], Attribution::Operator));
            }
            None => assert!(matches!(&rows[0].standing, Standing::NotFollowed(why) if why.contains("7"))),
        }
    }
}

#[test]
fn what_is_no_rule_is_refused_with_its_line() {
    for (wrong, says) in [
        ("sane = [\"a\", \"b\"]", "sane"),
        ("same = [\"a\"]", "2 to 32"),
        ("same = [\"a\", \"a\"]", "2 to 32"),
        ("ignore = \"mac\"", "type:tag"),
        ("lane = { agent = \"a\", devices = \"gpu\" }", "is no device"),
        ("lane = { agent = \"a\", devices = \"dram\", more = 1 }", "more"),
        ("same = [\"a\", \"b\"]\ndistinct = [\"a\", \"b\"]", ""),
    ] {
        let error = toml::from_str::<File>(&format!("\n[[rule]]\n{wrong}\n")).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(error.contains("line 3") || error.contains("line 2"), "{error}");
    }
}

#[test]
fn the_version_of_the_rules_changes_with_what_they_say_and_with_nothing_else() {
    let version = |text: &str| book(text).report(&[], 0).unwrap().version;
    let rule = "[[rule]]\nsame = [\"a b\", \"c\"]\n";
    let one = version(rule);
    assert!(one.len() == 16 && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    assert_eq!(version(&format!("# why\n\n{rule}")), one);
    let others = [
        "[[rule]]\nsame = [\"a\", \"b c\"]\n",
        "[[rule]]\nsame = [\"c\", \"a b\"]\n",
        "[[rule]]\ndistinct = [\"a b\", \"c\"]\n",
        "[[rule]]\nname = { agent = \"a b\", name = \"c\" }\n",
        "[[rule]]\nlane = { agent = \"a b\", devices = \"dram\" }\n",
        "[[rule]]\nignore = \"mac:1b2c\"\n",
        &format!("{rule}{rule}"),
    ];
    let versions: BTreeSet<String> = others.into_iter().map(version).chain([one]).collect();
    assert_eq!(versions.len(), 8);
}

#[test]
fn the_age_of_the_rules_is_that_of_their_file() {
    let book = book("[[rule]]\nignore = \"mac:1b2c\"\n");
    assert_eq!(book.report(&[], 61_000).unwrap().age_s, Some(60));
    assert!(Book::default().report(&[], 0).is_none());
}
