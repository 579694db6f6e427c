//! The control listener of the binary, on a port of its own: `POST /faults` adds rules (one per line),
//! `DELETE /faults` removes all, `GET /counts` and `GET /requests` tell what happened, `POST /kill` ends
//! all connections at once and refuses new ones.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::faults::Rule;
use super::http::{Out, Request};
use super::record::Outcome;
use super::server::{Inner, listening};

/// Begins to listen; returns the address.
pub(crate) fn start(double: &Arc<Inner>, listen: SocketAddr) -> io::Result<SocketAddr> {
    let listener = listening(listen)?;
    let addr = listener.local_addr()?;
    let double = Arc::clone(double);
    tokio::spawn(async move {
        let stopping = double.stopping.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    let double = Arc::clone(&double);
                    tokio::spawn(async move { connection(&double, stream).await });
                }
                () = stopping.cancelled() => return,
            }
        }
    });
    Ok(addr)
}

async fn connection(double: &Arc<Inner>, stream: TcpStream) -> io::Result<()> {
    let (mut reader, mut out) = Out::split(stream, double.calendar);
    while let Some(request) = reader.next(&mut out).await? {
        let (status, body) = answer(double, &request);
        let body = format!("{body}\n");
        out.whole(status, Some("application/json; charset=utf-8"), "", body.as_bytes()).await?;
        if out.close {
            break;
        }
    }
    Ok(())
}

fn answer(double: &Arc<Inner>, request: &Request) -> (u16, Value) {
    match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/faults") => {
            let text = String::from_utf8_lossy(&request.body);
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            match lines.map(str::parse::<Rule>).collect::<Result<Vec<_>, _>>() {
                Ok(rules) => {
                    let count = rules.len();
                    rules.into_iter().for_each(|rule| double.rules().add(rule));
                    (200, json!({"added": count}))
                }
                Err(error) => (400, json!({"error": error})),
            }
        }
        ("DELETE", "/faults") => {
            double.rules().clear();
            (200, json!({}))
        }
        ("GET", "/counts") => (200, counts(double)),
        ("GET", "/requests") => (200, requests(double)),
        ("POST", "/kill") => {
            double.killed.cancel();
            (200, json!({}))
        }
        _ => (404, json!({"error": "no such path on the control listener"})),
    }
}

fn counts(double: &Arc<Inner>) -> Value {
    let devices = double.engine.settings.devices.iter();
    let devices: serde_json::Map<String, Value> = devices
        .map(|device| {
            let overlap = device.overlap().as_secs_f64() * 1000.0;
            (device.name().to_owned(), json!({"overlap_ms": overlap, "collisions": device.collisions()}))
        })
        .collect();
    json!({
        "requests": double.record.received(),
        "connections": double.record.connections.load(Ordering::Relaxed),
        "in_flight": double.record.in_flight(),
        "max_in_flight": double.record.max_in_flight(),
        "loads": double.engine.loads(),
        "reloads": double.engine.reloads(),
        "forbidden": double.record.forbidden(),
        "unused_faults": double.rules().unused(),
        "devices": devices,
    })
}

fn requests(double: &Arc<Inner>) -> Value {
    let millis = |at: tokio::time::Instant| (at - double.started).as_secs_f64() * 1000.0;
    let list = double.record.requests().into_iter().map(|request| {
        let outcome = match request.outcome {
            Outcome::Running => json!("running"),
            Outcome::Answered(status) => json!(status),
            Outcome::HungUp => json!("hung_up"),
            Outcome::Broken => json!("broken"),
        };
        json!({"number": request.number, "method": request.method, "path": request.path,
            "received_ms": millis(request.received), "first_byte_ms": request.first_byte.map(millis),
            "ended_ms": request.ended.map(millis), "outcome": outcome, "fault": request.fault,
            "body": String::from_utf8_lossy(&request.body)})
    });
    Value::Array(list.collect())
}
