use tropa_proto::roster::{Roster, View};

use super::{
    file::parse,
    matching::{Found, Known, find},
    *,
};

fn error(text: &str) -> String {
    parse(text).err().map_or_else(|| panic!("{text} was read"), |error| error.to_string())
}

#[test]
fn what_is_wrong_in_a_nodes_file_is_named_with_its_line() {
    for (text, named) in [
        ("{\"nodes\":[\n{\"url\":\"http://a:1\"},\n{\"url\":\"http://a:1\"}]}", ["line 3", "line 2 already"]),
        ("{\"nodes\":[\n\n{\"url\":\"http://a:1\",\n\"weight\":3}]}", ["line 4", "unknown field `weight`"]),
        ("{\"nodes\":[\n{\"url\":\"a:1\"}]}", ["line 2", "no scheme"]),
        ("{\"nodes\":[\n{\"url\":\"https://a:1\"}]}", ["line 2", "https"]),
        ("{\"nodes\":[\n{\"url\":\"http://a:99999\"}]}", ["line 2", "http://host:port"]),
        ("{\"nodes\":[\n{\"name\":\"x\"}]}", ["line 2", "missing field `url`"]),
        ("{\"nodes\":[\n{\"url\":7}]}", ["line 2", "expected a string"]),
        ("{\"nodes\":[]}", ["line 1", "add one"]),
        ("{\"nodes\":[\n{\"url\":\"http://a:1\"},\n]}", ["line 3", "trailing comma"]),
        ("{\"nodes\":[],\n\"more\":1}", ["line 2", "unknown field `more`"]),
        ("nodes:", ["line 1", "{\"nodes\""]),
        (
            "{\"nodes\":[\n{\"url\":\"http://localhost:1\"},{\"url\":\"http://127.0.0.1:1/\"}]}",
            ["line 2", "already"],
        ),
    ] {
        let said = error(text);
        for name in named {
            assert!(said.contains(name), "{name} is not named in {said:?} of {text}");
        }
    }
}

#[test]
fn the_cleaned_file_has_the_entries_as_they_were_written() {
    let text =
        "{\"nodes\":[\n{\"url\":\"http://a:1\",\"priority\":2,\"name\":\"A\"},\n{\"url\":\"http://b:1\"}]}";
    let nodes = parse(text).unwrap();
    assert_eq!(
        nodes.only(&[2].into()).to_string(),
        "{\"nodes\":[{\"url\":\"http://a:1\",\"priority\":2,\"name\":\"A\"}]}"
    );
}

fn known(n: u8, here: bool, address: &str, port: u16) -> Known {
    let addresses = [address.parse().unwrap()].into();
    Known { agent: AgentId([n; 32]), here, addresses, port }
}

fn lead(url: &str, known: &[Known]) -> Found {
    let nodes = parse(&format!("{{\"nodes\":[{{\"url\":\"{url}\"}}]}}")).unwrap();
    let entry = &nodes.entries[0];
    let addresses = entry.host.parse().map(|address| [address].into()).map_err(|_| "not found".to_owned());
    find(entry, &addresses, known)
}

#[test]
fn an_entry_leads_to_the_one_agent_at_its_address_with_its_port() {
    let agents = [
        known(1, true, "127.0.0.1", 11434),
        known(2, true, "127.0.0.1", 11435),
        known(3, false, "192.0.2.7", 11434),
        known(4, false, "192.0.2.8", 0),
    ];
    let one = |n: u8| Found::One(AgentId([n; 32]));
    assert_eq!(lead("http://localhost:11434", &agents), one(1));
    assert_eq!(lead("http://127.0.0.1:11435", &agents), one(2));
    assert_eq!(lead("http://192.0.2.7:11434", &agents), one(3));
    // 192.0.2.9 is nobody's; the port of an install elsewhere is not known; loopback there is not loopback here.
    for url in
        ["http://192.0.2.9:11434", "http://192.0.2.8:11434", "http://192.0.2.7:11435", "http://name:11434"]
    {
        assert!(matches!(lead(url, &agents), Found::None { .. }), "{url}");
    }
    let elsewhere = [known(5, false, "127.0.0.1", 11434)];
    assert!(matches!(lead("http://localhost:11434", &elsewhere), Found::None { .. }));
    let twice = [known(1, true, "127.0.0.1", 11434), known(2, true, "127.0.0.1", 11434)];
    let Found::None { why, .. } = lead("http://localhost:11434", &twice) else { panic!("one was taken") };
    assert!(why.contains("2 agents fit"), "{why}");
}

#[test]
fn an_entry_without_an_agent_is_unknown_and_not_kept() {
    let nodes = parse("{\"nodes\":[{\"url\":\"http://192.0.2.9:11434\"}]}").unwrap();
    let addresses = [(1, Ok(["192.0.2.9".parse().unwrap()].into()))].into();
    let view: View = Roster::new(false).view().clone();
    let report = Report::of(&nodes, &addresses, &[], &view);
    assert_eq!((report.entries[0].verdict, report.usable), (Verdict::Unknown, 0));
    assert!(report.entries[0].remedy.contains("tropa-agent --ollama http://127.0.0.1:11434"));
    assert_eq!(report.cleaned, serde_json::json!({"nodes": []}));
    assert!(report.summary.contains("1 without an agent"), "{}", report.summary);
}
