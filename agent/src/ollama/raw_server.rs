//! A server for tests that plays bytes: what a recorded install sent, or what no install should send.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

use super::OllamaUrl;

/// One step of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Play {
    /// Send these bytes.
    Bytes(Vec<u8>),
    /// Send these bytes in writes of so many bytes.
    Pieces(Vec<u8>, usize),
    /// Wait for a permit of the test.
    Gate(Arc<Semaphore>),
    /// Send one byte for ever, so often.
    Drip(Duration),
    /// Take no further connections, from before this answer ends.
    Refuse,
    /// End with a reset.
    Reset,
}

/// Decides the answer: path and body in, steps out.
pub(crate) type Script = Arc<dyn Fn(&str, &[u8]) -> Vec<Play> + Send + Sync>;

/// The server; dropping it closes everything.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    paths: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&str, &[u8]) -> Vec<Play> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let paths = Arc::new(Mutex::new(Vec::new()));
        let (script, log): (Script, _) = (Arc::new(script), Arc::clone(&paths));
        let task = tokio::spawn(async move {
            let mut listener = Some(listener);
            let (close, mut closed) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<()>>(1);
            let mut connections = JoinSet::new();
            while let Some(open) = &listener {
                tokio::select! {
                    accepted = open.accept() => {
                        let (stream, _) = accepted.unwrap();
                        connections.spawn(answer(stream, Arc::clone(&script), Arc::clone(&log), close.clone()));
                    }
                    Some(done) = closed.recv() => {
                        listener = None;
                        let _ = done.send(());
                    }
                }
            }
            while connections.join_next().await.is_some() {}
        });
        Self { address, paths, task }
    }

    pub(crate) fn url(&self) -> OllamaUrl {
        OllamaUrl::parse(&format!("http://{}", self.address), false).unwrap()
    }

    /// The paths that were asked for, in order.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut stream: TcpStream,
    script: Script,
    log: Arc<Mutex<Vec<String>>>,
    close: tokio::sync::mpsc::Sender<tokio::sync::oneshot::Sender<()>>,
) {
    stream.set_nodelay(true).unwrap();
    let mut request = Vec::new();
    let (path, body) = loop {
        if let Some(parsed) = parse(&request) {
            break parsed;
        }
        let mut buffer = [0; 16 << 10];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    };
    log.lock().unwrap().push(path.clone());
    for play in script(&path, &body) {
        // The client may be gone: then there is nobody to play for.
        let sent = match play {
            Play::Bytes(bytes) => stream.write_all(&bytes).await,
            Play::Pieces(bytes, size) => {
                let mut sent = Ok(());
                for piece in bytes.chunks(size) {
                    sent = stream.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
                sent
            }
            Play::Gate(gate) => {
                gate.acquire().await.unwrap().forget();
                Ok(())
            }
            Play::Drip(pause) => loop {
                if let Err(error) = stream.write_all(b"x").await {
                    break Err(error);
                }
                tokio::time::sleep(pause).await;
            },
            Play::Refuse => {
                let (done, closed) = tokio::sync::oneshot::channel();
                close.send(done).await.unwrap();
                closed.await.unwrap();
                Ok(())
            }
            Play::Reset => {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

fn parse(request: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&request[..end]).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body = request.get(end..end + length.unwrap_or(0))?;
    Some((path, body.to_vec()))
}

/// A whole answer with a JSON body.
pub(crate) fn json(status: u16, body: &Value) -> Vec<Play> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    vec![Play::Bytes((head + &body).into_bytes())]
}

/// The head of a stream.
pub(crate) fn ndjson() -> Play {
    Play::Bytes(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec(),
    )
}

/// One line as one chunk.
pub(crate) fn line(value: &Value) -> Play {
    chunk(format!("{value}\n").as_bytes())
}

/// One chunk of these bytes.
pub(crate) fn chunk(bytes: &[u8]) -> Play {
    let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
    Play::Bytes(out)
}

/// The clean end of a stream.
pub(crate) fn end() -> Play {
    Play::Bytes(b"0\r\n\r\n".to_vec())
}
