//! `tropa map`: the same question to every part of long documents, and the answers brought together.

use std::path::PathBuf;

use anyhow::anyhow;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tropa_proto::id::hex;

use crate::{
    args::MapArgs,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    job::{
        self, DEFAULT_MAX_TOKENS, Density,
        document::Document,
        map::{MapAsk, MapError, SUMMARISE},
    },
    journal::Kind,
    settings::Settings,
    submit::{
        exit_of,
        graph::{GraphJob, Room, USUAL_CONTEXT, run_counted},
    },
};

/// All documents of one job, in bytes, at most: they are in memory while the job is made.
const MAX_BYTES: u64 = 256 << 20;

/// `tropa map`.
///
/// # Errors
/// With the codes of `conventions.md` §3: what is wrong with a document is said before anything starts.
pub async fn map(args: MapArgs, settings: &Settings, clock: Clock) -> Outcome {
    let documents = documents(args.documents).await?;
    let ask = MapAsk {
        prompt: args.prompt.unwrap_or_else(|| SUMMARISE.to_owned()),
        merge: args.merge,
        max_tokens: args.max_tokens.or(settings.job.max_tokens()).unwrap_or(DEFAULT_MAX_TOKENS),
        part_tokens: args.part_tokens,
        together: args.together,
        system_tokens: args
            .ask
            .system
            .as_ref()
            .map_or(0, |system| Density::default().tokens(system.len() as u64) + 20),
    };
    if ask.prompt.trim().is_empty() {
        return Err(anyhow!("--prompt is empty; write what you want to know of the documents"))
            .or_exit(Exit::Input);
    }
    let mut hash = Sha256::new();
    let input_sha256 = match documents.as_slice() {
        [only] => only.sha256,
        several => {
            several.iter().for_each(|document| hash.update(document.sha256));
            hash.finalize().into()
        }
    };
    let listed =
        documents.iter().map(|d| json!({"name": d.name, "bytes": d.bytes, "sha256": hex(&d.sha256)}));
    let spec = json!({
        "schema": "tropa.map/1", "documents": listed.collect::<Vec<_>>(), "prompt": ask.prompt, "merge": ask.merge,
        "max_tokens": ask.max_tokens, "part_tokens": ask.part_tokens, "together": ask.together, "seed": args.ask.seed,
        "num_ctx": args.ask.num_ctx, "temperature": args.ask.temperature, "system": args.ask.system,
        "think": args.ask.think, "model": args.ask.model,
    });
    let job = GraphJob { kind: Kind::Map, spec, input_sha256, ask: args.ask, output: args.output };
    let texts = |room: &Room| {
        if !ask.may_cut(&documents, room.context) {
            return Vec::new();
        }
        let mut longest: Vec<&Document> = documents.iter().collect();
        longest.sort_by_key(|document| std::cmp::Reverse(document.text.len()));
        longest.into_iter().map(|document| document.text.as_str()).collect()
    };
    let build =
        |room: &Room| ask.graph(&documents, room.context, room.density).map_err(|error| refuse(error, room));
    run_counted(job, texts, build, settings, clock).await
}

/// Reads all documents, or says what is wrong with the first that cannot be used.
async fn documents(paths: Vec<PathBuf>) -> Result<Vec<Document>, Failed> {
    let reading = tokio::task::spawn_blocking(move || {
        let (mut documents, mut bytes) = (Vec::<Document>::new(), 0);
        for path in paths {
            let document = Document::read(&path)?;
            bytes += document.text.len() as u64;
            let wrong =
                |what: String, remedy: &str| job::InputError { line: 0, what, remedy: remedy.to_owned() };
            if bytes > MAX_BYTES {
                let what = format!("more than {} MiB of documents", MAX_BYTES >> 20);
                return Err(wrong(what, "make several jobs of them").into());
            }
            if documents.iter().any(|other| other.name == document.name) {
                return Err(wrong(format!("{}: named twice", document.name), "name it once").into());
            }
            documents.push(document);
        }
        Ok::<_, job::Error>(documents)
    });
    let documents = reading.await.or_exit(Exit::Io)?;
    documents.map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })
}

/// Says what does not fit, and what would help: the model, the flag or the documents.
fn refuse(error: MapError, room: &Room) -> Failed {
    let too_small = room.model.as_ref().filter(|model| model.context > 0 && model.context <= room.context);
    let (exit, remedy) = match (&error, too_small) {
        (MapError::Graph(_), _) => {
            (Exit::Input, "raise --part-tokens, or make several jobs of it".to_owned())
        }
        (_, Some(model)) => {
            let remedy = format!(
                "{} was trained for {}: shorten --prompt, lower --max-tokens, or choose another model",
                model.name, model.context
            );
            (Exit::NothingCanRun, remedy)
        }
        (_, None) => {
            let raise = room.context.max(USUAL_CONTEXT) * 2;
            (Exit::Input, format!("shorten --prompt, lower --max-tokens, or raise --num-ctx, say to {raise}"))
        }
    };
    Failed { exit, error: anyhow!("{error}; {remedy}") }
}
