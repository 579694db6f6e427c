use serde_json::json;

use super::*;

fn file(source: Source, text: &str) -> ConfigFile {
    let said = toml::from_str(text).unwrap();
    ConfigFile { path: PathBuf::from("config.toml"), source, said, rules: Book::default() }
}

fn files() -> Vec<ConfigFile> {
    let user = Source::UserFile(PathBuf::from("user.toml"));
    let system = Source::SystemFile(PathBuf::from("system.toml"));
    vec![
        file(user, "wait = 5\n[job]\nmodel = \"tiny\"\nsystem = \"You are a llama.\"\n"),
        file(system, "wait = 7\npeer = [\"den:11634\"]\n[job]\nmodel = \"huge\"\nnum-ctx = 4096\n"),
    ]
}

fn chosen(global: &Global, files: Vec<ConfigFile>, host: Option<&str>) -> Chosen {
    let nowhere = PathBuf::from("/nonexistent");
    let places = Places { config: nowhere.clone(), state: nowhere, system: None };
    Chosen::among(global, &JobDefaults::default(), places, files, host.map(str::to_owned))
}

fn setting(chosen: &Chosen, name: &str) -> (Value, &'static str) {
    let found: Vec<&Setting> = chosen.settings.iter().filter(|setting| setting.name == name).collect();
    let [one] = &found[..] else { panic!("{name} is there {} times", found.len()) };
    (one.value.clone(), one.source.name())
}

#[test]
fn each_value_is_that_of_the_strongest_place_that_says_it() {
    let chosen = chosen(&Global::default(), files(), None);
    assert_eq!(chosen.wait, 5.0);
    assert_eq!(setting(&chosen, "wait"), (json!(5.0), "user file"));
    assert_eq!(setting(&chosen, "peer"), (json!(["den:11634"]), "system file"));
    assert_eq!(setting(&chosen, "job.model"), (json!("tiny"), "user file"));
    assert_eq!(setting(&chosen, "job.num-ctx"), (json!(4096), "system file"));
    assert_eq!(setting(&chosen, "job.max-tokens"), (json!(null), "default"));
    assert_eq!((chosen.job.model.as_deref(), chosen.job.num_ctx), (Some("tiny"), Some(4096)));
}

#[test]
fn what_is_typed_or_in_a_variable_wins_over_every_file() {
    let mut global = Global { wait: Some(1.0), peer: vec!["attic:1".to_owned()], ..Global::default() };
    global.typed = Typed::new([("wait", Origin::Variable), ("peer", Origin::Flag)]);
    let chosen = chosen(&global, files(), None);
    assert_eq!((chosen.wait, &chosen.peers[..]), (1.0, &["attic:1".to_owned()][..]));
    assert_eq!(setting(&chosen, "peer").1, "flag");
    let wait = chosen.settings.iter().find(|setting| setting.name == "wait").unwrap();
    assert_eq!(
        serde_json::to_value(wait).unwrap(),
        json!({"name": "wait", "value": 1.0, "source": "variable", "from": "TROPA_WAIT"})
    );
}

#[test]
fn ollamas_own_variable_is_weaker_than_what_is_said_to_tropa() {
    let host = Some("127.0.0.1:5");
    let by_host = chosen(&Global::default(), Vec::new(), host);
    assert_eq!(by_host.ollama, Some(Address::Host("127.0.0.1:5".to_owned())));
    assert_eq!(setting(&by_host, "ollama"), (json!("127.0.0.1:5"), "variable"));
    let said = file(Source::UserFile(PathBuf::from("u")), "ollama = \"127.0.0.1:6\"\n");
    let by_file = chosen(&Global::default(), vec![said], host);
    assert_eq!(by_file.ollama, Some(Address::Named("127.0.0.1:6".to_owned())));
    assert_eq!(setting(&by_file, "ollama").1, "user file");
}

#[test]
fn of_a_prompt_only_its_length_is_told_and_every_setting_is_there_once() {
    let chosen = chosen(&Global::default(), files(), None);
    assert_eq!(setting(&chosen, "job.system").0, json!("16 bytes"));
    assert_eq!(chosen.job.system.as_deref(), Some("You are a llama."));
    assert!(!serde_json::to_string(&chosen.settings).unwrap().contains("You are"));
    let mut names: Vec<&str> = chosen.settings.iter().map(|setting| setting.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert_eq!(setting(&chosen, "mdns").0, json!(false), "never without a secret");
}
