//! How long a stream is waited for, in a clock that only the tests move.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc, stream};
use tokio::time::Instant;

use super::*;
use crate::id::{Incarnation, JobId};

/// What comes from a peer that reads nothing.
struct Peer(Pin<Box<dyn AsyncRead + Send>>);

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_read(cx, to)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A stream on which these bytes come, each piece so long after the one before, and then nothing more.
fn stream(pieces: Vec<(Duration, Vec<u8>)>) -> WorkStream {
    let timed = stream::iter(pieces).then(|(after, piece)| async move {
        sleep(after).await;
        Ok::<_, io::Error>(piece)
    });
    // Open for ever: an end would be another matter.
    let (open, silence) = mpsc::unbounded::<io::Result<Vec<u8>>>();
    let bytes = timed.chain(silence.map(move |piece| {
        let _ = &open;
        piece
    }));
    let from: Pin<Box<dyn AsyncRead + Send>> = Box::pin(Box::pin(bytes).into_async_read());
    WorkStream::new(AgentId([1; 32]), None, Peer(from), Arc::new(()), Complaints::default())
}

fn frame(message: &ToAgent) -> Vec<u8> {
    let body = codec::encode(message).unwrap();
    [u32::try_from(body.len()).unwrap().to_be_bytes().as_slice(), &body].concat()
}

fn hello(role: Role) -> Hello {
    Hello { incarnation: Incarnation(1), role }
}

/// The frame in two halves, the second so long after the first.
fn in_halves(frame: &[u8], after: Duration) -> Vec<(Duration, Vec<u8>)> {
    let (first, second) = frame.split_at(frame.len() / 2);
    vec![(Duration::from_secs(100), first.to_vec()), (after, second.to_vec())]
}

#[expect(clippy::disallowed_methods, reason = "the clock of the tests, which stands still but for sleeps")]
fn now() -> Instant {
    Instant::now()
}

const MOMENT: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_frame_has_thirty_seconds_from_its_first_byte_to_its_last() {
    let renew = ToAgent::Renew(JobId([7; 16]));
    let whole = frame(&renew);
    let mut in_time = stream(in_halves(&whole, FRAME_LIMIT - MOMENT));
    let received = in_time.recv::<ToAgent>().await.unwrap();
    assert_eq!(received, Some(renew), "however long nothing came before");
    let begin = now();
    let mut late = stream(in_halves(&whole, FRAME_LIMIT + MOMENT));
    assert!(matches!(late.recv::<ToAgent>().await, Err(WorkError::Slow(_))));
    assert_eq!(begin.elapsed(), Duration::from_secs(100) + FRAME_LIMIT);
    // A byte now and then is no sign of life.
    let mut dripping = stream(whole.iter().map(|byte| (FRAME_LIMIT / 10, vec![*byte])).collect());
    assert!(matches!(dripping.recv::<ToAgent>().await, Err(WorkError::Slow(_))));
}

#[tokio::test(start_paused = true)]
async fn a_hello_has_five_seconds_on_both_sides_however_it_comes() {
    let said = frame(&ToAgent::Hello(hello(Role::Coordinator)));
    let mut in_time = stream(vec![(HELLO_LIMIT - MOMENT, said.clone())]);
    let greeted = greet_coordinator(&mut in_time, hello(Role::Agent)).await.unwrap();
    assert_eq!(greeted.role, Role::Coordinator);
    let dripping = said.iter().map(|byte| (HELLO_LIMIT / 2, vec![*byte])).collect();
    for pieces in [Vec::new(), vec![(HELLO_LIMIT + MOMENT, said.clone())], dripping] {
        let begin = now();
        let greeted = greet_coordinator(&mut stream(pieces), hello(Role::Agent)).await;
        assert!(matches!(greeted, Err(WorkError::NoHello(_))), "{greeted:?}");
        assert_eq!(begin.elapsed(), HELLO_LIMIT);
    }
    let greeted = greet_agent(&mut stream(Vec::new()), hello(Role::Coordinator)).await;
    assert!(matches!(greeted, Err(WorkError::NoHello(_))), "{greeted:?}");
    let waited = stream(Vec::new()).split().0.hello_of_agent().await;
    assert!(matches!(waited, Err(WorkError::NoHello(_))), "{waited:?}");
}
