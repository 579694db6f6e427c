//! A pass on the wire: forwards connections to where they would have gone, and can tell its observer when a request
//! that occupies the engine begins and ends. So a real engine, which writes no time line, has a witness too; and
//! several hosts can stand behind one address.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// What is held while a request occupies the engine; dropping it is the end.
pub type Running = Box<dyn Send>;

/// Called when a request begins that occupies the engine: a chat or an embedding.
pub type Began = Arc<dyn Fn() -> Running + Send + Sync>;

/// Forwards every connection to `target` (`HOST:PORT`, resolved anew for each), until the process ends; gives the
/// address that it listens on.
///
/// # Errors
/// When it cannot listen there.
pub fn forward(listen: SocketAddr, target: &str, began: Began) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen)?;
    let address = listener.local_addr()?;
    let target = target.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (target, began) = (target.clone(), Arc::clone(&began));
            // An error is a connection that has ended.
            thread::spawn(move || drop(pass(client, &target, &began)));
        }
    });
    Ok(address)
}

/// An observer that sees nothing.
#[must_use]
pub fn blind() -> Began {
    Arc::new(|| Box::new(()))
}

/// Passes bytes both ways. A request lasts to the end of its chunked answer, or until either side hangs up.
fn pass(mut client: TcpStream, target: &str, began: &Began) -> io::Result<()> {
    let mut server = TcpStream::connect(target)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let running: Arc<Mutex<Option<Running>>> = Arc::default();
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (beginning, began) = (Arc::clone(&running), Arc::clone(began));
    thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(count @ 1..) = from_client.read(&mut buffer) {
            if buffer[..count].starts_with(b"POST /api/chat ")
                || buffer[..count].starts_with(b"POST /api/embed ")
            {
                set(&beginning, Some(began()));
            }
            if to_server.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // A client that hangs up cancels; the install must see it.
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let passed = pass_back(&mut server, &mut client, &running);
    // The agent hangs up at `done:true`, so the end of an answer may come as an error of either side.
    set(&running, None);
    passed
}

/// Passes the answers back until either side hangs up.
fn pass_back(
    server: &mut TcpStream,
    client: &mut TcpStream,
    running: &Mutex<Option<Running>>,
) -> io::Result<()> {
    let mut buffer = [0; 64 << 10];
    let (mut last, mut chunked) = (Vec::new(), true);
    loop {
        let count = server.read(&mut buffer)?;
        if buffer[..count].starts_with(b"HTTP/1.1 ") {
            chunked =
                buffer[..count].windows(19).any(|part| part.eq_ignore_ascii_case(b"transfer-encoding: "));
        }
        last.extend_from_slice(&buffer[..count]);
        last.drain(..last.len().saturating_sub(5));
        if count == 0 || !chunked || last == b"0\r\n\r\n" {
            set(running, None);
        }
        if count == 0 {
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&buffer[..count])?;
    }
}

fn set(running: &Mutex<Option<Running>>, to: Option<Running>) {
    *running.lock().unwrap_or_else(PoisonError::into_inner) = to;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Ends(Arc<AtomicUsize>);

    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_chat_lasts_from_its_request_to_the_end_of_its_answer_and_other_calls_are_not_seen() {
        let engine = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = engine.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for mut client in engine.incoming().map_while(Result::ok) {
                let mut buffer = [0; 1024];
                while let Ok(1..) = client.read(&mut buffer) {
                    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
                    if client.write_all(head).is_err() {
                        break;
                    }
                }
            }
        });
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (begins, ends) = (Arc::clone(&begun), Arc::clone(&ended));
        let began: Began = Arc::new(move || {
            begins.fetch_add(1, Ordering::SeqCst);
            Box::new(Ends(Arc::clone(&ends)))
        });
        let address = forward("127.0.0.1:0".parse().unwrap(), &target, began).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        for (request, chats) in
            [("GET /api/tags HTTP/1.1\r\n\r\n", 0), ("POST /api/chat HTTP/1.1\r\n\r\n", 1)]
        {
            client.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"0\r\n\r\n") {
                let mut byte = [0];
                assert_eq!(client.read(&mut byte).unwrap(), 1);
                answer.push(byte[0]);
            }
            // The end is told before the last bytes are passed on.
            assert_eq!(begun.load(Ordering::SeqCst), chats);
            assert_eq!(ended.load(Ordering::SeqCst), chats);
        }
    }
}
