//! Faults that answer before the engine is asked.

use std::io;

use serde_json::json;

use super::ask::Kind;
use super::faults::{Fault, Mode};
use super::http::Out;
use super::record::Outcome;
use super::routes::{Call, QUEUE_FULL, plain, whole};
use super::work::{self, millis};

/// Faults that answer without the engine; `None` when the request goes on.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other modes act in the engine or in the stream")]
pub(crate) async fn at_once(
    call: &mut Call<'_>,
    out: &mut Out,
    fault: &Fault,
    kind: Option<Kind>,
    model: &str,
) -> io::Result<Option<Outcome>> {
    let done = match fault.mode {
        Mode::QueueFull => call.error(out, 503, QUEUE_FULL).await?,
        Mode::Missing if kind == Some(Kind::Embed) => {
            call.error(out, 404, &format!("model \"{model}\" not found, try pulling it first")).await?
        }
        Mode::Missing => call.error(out, 404, &format!("model '{model}' not found")).await?,
        Mode::EmptyError => whole(out, call.entry, 500, None, "", b"").await?,
        Mode::ErrorFirstLine => {
            call.entry.land();
            out.begin(200, "application/x-ndjson");
            out.end(format!("{}\n", json!({"error": fault.text("text")})).as_bytes()).await?;
            Outcome::Answered(200)
        }
        Mode::EmptyOk => {
            call.entry.land();
            out.begin(200, "application/x-ndjson");
            out.end(b"").await?;
            Outcome::Answered(200)
        }
        Mode::OptionError => call.error(out, 500, "option \"temperature\" must be of type float32").await?,
        Mode::NoThinking => call.error(out, 400, &format!("\"{model}\" does not support thinking")).await?,
        Mode::NestedError => call.error(out, 400, &work::nested(302, 256)).await?,
        Mode::Html => {
            let page = b"<!doctype html><html><body><h1>It works!</h1></body></html>";
            whole(out, call.entry, 200, Some("text/html"), "", page).await?
        }
        Mode::Redirect => {
            let place = format!("Location: http://{}/api/chat\r\n", call.double.silent_port()?);
            whole(out, call.entry, 307, Some("text/html"), &place, b"").await?
        }
        Mode::PlainMissing => plain(out, call.entry, 404, "", "404 page not found").await?,
        Mode::Unauthorized => {
            let body =
                json!({"error": "unauthorized", "signin_url": "https://ollama.com/connect?name=x&key=y"});
            call.json(out, 401, body.to_string().as_bytes()).await?
        }
        Mode::Forbidden => whole(out, call.entry, 403, None, "", b"").await?,
        Mode::Reset if fault.number("after") == 0 || kind == Some(Kind::Embed) => {
            call.entry.land();
            out.reset();
            Outcome::Broken
        }
        Mode::Restart => {
            call.double.restart(millis(fault));
            // The restart drops this future together with the connection.
            std::future::pending().await
        }
        Mode::PsWaits | Mode::TagsSlow => {
            tokio::time::sleep(millis(fault)).await;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(done))
}
