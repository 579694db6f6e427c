//! From a path to an answer: the eight endpoints, the traps, the guard against strangers, and the faults that
//! answer at once.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::ask::{Ask, Kind};
use super::at_once::at_once;
use super::clock::{self, rfc3339};
use super::embed;
use super::engine::Engine;
use super::faults::{Asked, Fault, Mode};
use super::http::{Out, Request};
use super::model::{Model, Version, is_cloud_name};
use super::record::{Entry, Outcome};
use super::server::Inner;
use super::work;

/// What Ollama says when its queue is full; two spaces are its own.
pub(crate) const QUEUE_FULL: &str = "server busy, please try again.  maximum pending requests exceeded";

const JSON: &str = "application/json; charset=utf-8";

/// What no client of ours may call: it writes, it costs, or it talks to the cloud.
const TRAPS: [&str; 11] = [
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs",
    "/api/me",
    "/api/signout",
    "/api/user",
    "/api/experimental",
    "/v1",
];

/// Everything about one request that its answer needs.
pub(crate) struct Call<'a> {
    pub(crate) double: &'a Arc<Inner>,
    pub(crate) engine: &'a Arc<Engine>,
    pub(crate) entry: &'a Entry,
    pub(crate) version: Version,
    pub(crate) fault: Option<Fault>,
    pub(crate) received: Instant,
    /// Work requests that came before this one.
    before: u64,
    skew: i64,
}

/// Answers one request.
pub(crate) async fn answer(
    double: &Arc<Inner>,
    request: &Request,
    out: &mut Out,
    entry: &Entry,
) -> io::Result<Outcome> {
    let path = request.path.split('?').next().unwrap_or_default();
    let inside = |rest: &str| rest.is_empty() || rest.starts_with('/');
    if TRAPS.iter().any(|trap| path.strip_prefix(trap).is_some_and(inside)) {
        double.record.forbid(format!("{} {path}", request.method));
        return whole(out, entry, 403, Some(JSON), "", br#"{"error":"the double forbids this call"}"#).await;
    }
    if is_stranger(request) {
        return whole(out, entry, 403, None, "", b"").await;
    }
    if path == "/" && matches!(request.method.as_str(), "GET" | "HEAD") {
        let body: &[u8] = if request.method == "GET" { b"Ollama is running" } else { b"" };
        return whole(out, entry, 200, Some("text/plain; charset=utf-8"), "", body).await;
    }
    let Some((method, kind)) = endpoint(path) else {
        return plain(out, entry, 404, "", "404 page not found").await;
    };
    if request.method != method {
        return plain(out, entry, 405, &format!("Allow: {method}\r\n"), "405 method not allowed").await;
    }
    let ask = kind.map(|kind| Ask::read(kind, &request.body));
    let named = match &ask {
        Some(Ok(ask)) => ask.model.clone(),
        None if path == "/api/show" => name_in(&request.body),
        Some(Err(_)) | None => String::new(),
    };
    let mut call = begin(double, entry, path, &named, ask.as_ref().and_then(|ask| ask.as_ref().ok()));
    if let Some(fault) = call.fault.clone() {
        entry.fault(fault.mode.name());
        if let Some(outcome) = at_once(&mut call, out, &fault, kind, &named).await? {
            return Ok(outcome);
        }
    }
    match ask {
        Some(Err(text)) => call.error(out, 400, &text).await,
        Some(Ok(ask)) if call.has_vanished(&ask.model) => call.no_model(out, &ask).await,
        Some(Ok(ask)) if ask.kind == Kind::Embed => embed::embed(&mut call, out, &ask).await,
        Some(Ok(ask)) => work::generate(&mut call, out, &ask).await,
        None => control(&mut call, out, path, &named).await,
    }
}

/// The method of a known path, and which work it is, if any.
fn endpoint(path: &str) -> Option<(&'static str, Option<Kind>)> {
    Some(match path {
        "/api/version" | "/api/tags" | "/api/ps" | "/api/status" => ("GET", None),
        "/api/show" => ("POST", None),
        "/api/chat" => ("POST", Some(Kind::Chat)),
        "/api/generate" => ("POST", Some(Kind::Generate)),
        "/api/embed" => ("POST", Some(Kind::Embed)),
        _ => return None,
    })
}

/// Whether a path is one of the three that work.
pub(crate) fn is_work(path: &str) -> bool {
    endpoint(path.split('?').next().unwrap_or_default()).is_some_and(|(_, kind)| kind.is_some())
}

/// The guard of an install on loopback: a foreign `Host`, or any `Origin` that is not local.
fn is_stranger(request: &Request) -> bool {
    let host = request.header("host").unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let local = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unspecified(),
        Err(_) => {
            let ends = [".localhost", ".local", ".internal"];
            host.is_empty() || host == "localhost" || ends.iter().any(|end| host.ends_with(end))
        }
    };
    let origin = request.header("origin").is_some_and(|origin| {
        let name = origin.split("://").nth(1).unwrap_or_default();
        let name = name.split(':').next().unwrap_or_default();
        !matches!(name, "localhost" | "127.0.0.1" | "0.0.0.0")
    });
    !local || origin
}

fn name_in(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let name = body.get("model").or_else(|| body.get("name"));
    name.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Finds out what applies to this request.
fn begin<'a>(
    double: &'a Arc<Inner>,
    entry: &'a Entry,
    path: &str,
    model: &str,
    ask: Option<&Ask>,
) -> Call<'a> {
    let engine = &double.engine;
    let before = if is_work(path) { double.count_work() } else { double.work_so_far() };
    let received = clock::now();
    let mut call = Call {
        double,
        engine,
        entry,
        version: double.version.clone(),
        fault: None,
        received,
        before,
        skew: 0,
    };
    let mut rules = double.rules();
    if rules.is_empty() {
        return call;
    }
    let prompt = ask.map(Ask::prompt).unwrap_or_default();
    let asked = Asked { path, model, prompt: &prompt };
    if let Some(fault) = rules.install(Mode::Version, &asked, |_| true) {
        call.version = Version::new(fault.text("version"));
    }
    if let Some(fault) = rules.install(Mode::Skew, &asked, |_| true) {
        call.skew = fault.number("seconds");
    }
    call.fault = rules.pick(&asked);
    drop(rules);
    call
}

/// The endpoints that only tell.
async fn control(call: &mut Call<'_>, out: &mut Out, path: &str, named: &str) -> io::Result<Outcome> {
    let version = call.version.clone();
    let reply = match path {
        "/api/version" => json!({"version": version.text}),
        "/api/status" if !version.at_least(0, 16, 2) => {
            return plain(out, call.entry, 404, "", "404 page not found").await;
        }
        "/api/status" => json!({"cloud": {"disabled": false, "source": "none"}}),
        "/api/tags" => {
            let models = call.engine.settings.models.iter().filter(|model| !call.has_vanished(&model.name));
            let list: Vec<Value> = models.map(|model| call.in_tags(model)).collect();
            json!({"models": list})
        }
        "/api/ps" => {
            let mut list = Vec::new();
            let vram = if call.double.rules().has(Mode::Slow) { 0 } else { call.engine.settings.vram };
            for loaded in call.engine.in_memory(version.at_least(0, 30, 0)).await {
                let Some(model) = call.find(&loaded.name) else { continue };
                let expires = rfc3339(call.double.calendar.since_1970(clock::now()) + loaded.expires_in);
                let digest = call.digest_of(&model).0;
                list.push(model.in_ps(&version, &digest, vram, loaded.context, &expires));
            }
            json!({"models": list})
        }
        _ => {
            if is_cloud_name(named) {
                call.double.record.forbid(format!("POST /api/show of the cloud name {named}"));
            }
            let Some(model) = call.find(named).filter(|model| !call.has_vanished(&model.name)) else {
                return call.error(out, 404, &format!("model '{named}' not found")).await;
            };
            let edition = call.digest_of(&model).1;
            model.show(&version, edition, &call.modified_at())
        }
    };
    call.json(out, 200, reply.to_string().as_bytes()).await
}

impl Call<'_> {
    pub(crate) fn is(&self, mode: Mode) -> bool {
        self.fault.as_ref().is_some_and(|fault| fault.mode == mode)
    }

    /// The model of this name; since 0.18 `:local` asks for one that is here.
    pub(crate) fn find(&self, name: &str) -> Option<Model> {
        let models = &self.engine.settings.models;
        let found = models.iter().find(|model| model.is_named(name)).cloned();
        if found.is_some() || !self.version.at_least(0, 18, 0) {
            return found;
        }
        let short = name.strip_suffix(":local")?;
        models.iter().find(|model| model.is_named(short)).cloned()
    }

    pub(crate) fn created_at(&self) -> String {
        let now = self.double.calendar.since_1970(clock::now());
        let skew = Duration::from_secs(self.skew.unsigned_abs());
        rfc3339(if self.skew < 0 { now.saturating_sub(skew) } else { now + skew })
    }

    /// A whole JSON reply.
    pub(crate) async fn json(&self, out: &mut Out, status: u16, body: &[u8]) -> io::Result<Outcome> {
        whole(out, self.entry, status, Some(JSON), "", body).await
    }

    /// An error before the engine was asked.
    pub(crate) async fn error(&self, out: &mut Out, status: u16, text: &str) -> io::Result<Outcome> {
        self.json(out, status, json!({"error": text}).to_string().as_bytes()).await
    }

    /// An error of the engine before the first line: chunked and without charset where a stream was asked for,
    /// and below 0.12.6 a line with status 200.
    pub(crate) async fn late_error(
        &self,
        out: &mut Out,
        stream: bool,
        status: u16,
        text: &str,
    ) -> io::Result<Outcome> {
        if !stream {
            return self.error(out, status, text).await;
        }
        self.entry.land();
        self.entry.first_byte();
        let mut body = json!({"error": text}).to_string();
        let status = if self.version.at_least(0, 12, 6) {
            out.begin(status, "application/json");
            status
        } else {
            out.begin(200, "application/x-ndjson");
            body.push('\n');
            200
        };
        out.end(body.as_bytes()).await?;
        Ok(Outcome::Answered(status))
    }

    fn modified_at(&self) -> String {
        rfc3339(self.double.calendar.since_1970(self.double.started))
    }

    /// Whether a fault about the install holds for this model by now.
    fn install(&self, mode: Mode, model: &str) -> bool {
        let asked = Asked { path: "", model, prompt: "" };
        let begun = |fault: &Fault| self.before >= fault.number("after").unsigned_abs();
        self.double.rules().install(mode, &asked, begun).is_some()
    }

    fn has_vanished(&self, model: &str) -> bool {
        self.install(Mode::Vanish, model)
    }

    /// The digest that the model has by now, and the edition of its contents.
    fn digest_of(&self, model: &Model) -> (String, u64) {
        let edition = u64::from(self.install(Mode::DigestChanges, &model.name));
        if edition == 1 || self.install(Mode::DigestOnlyChanges, &model.name) {
            let mut digest = model.digest.clone();
            let first = if digest.starts_with('0') { "1" } else { "0" };
            digest.replace_range(..1.min(digest.len()), first);
            return (digest, edition);
        }
        (model.digest.clone(), 0)
    }

    fn in_tags(&self, model: &Model) -> Value {
        let cloud = self.install(Mode::CloudTag, &model.name);
        model.in_tags(&self.version, &self.digest_of(model).0, cloud, &self.modified_at())
    }
}

pub(crate) async fn plain(
    out: &mut Out,
    entry: &Entry,
    status: u16,
    extra: &str,
    text: &str,
) -> io::Result<Outcome> {
    whole(out, entry, status, Some("text/plain"), extra, text.as_bytes()).await
}

pub(crate) async fn whole(
    out: &mut Out,
    entry: &Entry,
    status: u16,
    kind: Option<&str>,
    extra: &str,
    body: &[u8],
) -> io::Result<Outcome> {
    entry.land();
    entry.first_byte();
    out.whole(status, kind, extra, body).await?;
    Ok(Outcome::Answered(status))
}
