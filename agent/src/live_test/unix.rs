//! Meeting at an abstract name: it belongs to the network namespace and leaves nothing behind. Linux only; elsewhere no
//! such path can be made, and the test says so.

use std::{ffi::OsString, io, path::PathBuf};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tropa_proto::id::hex;

/// A place at which others are waited for.
pub(super) struct Host(UnixListener);

impl Host {
    /// Begins to listen; a place that stands is not given twice.
    pub(super) fn at(place: [u8; 16]) -> io::Result<Self> {
        UnixListener::bind(name(place)).map(Self)
    }

    /// Waits for a visitor and gives it the nonce.
    pub(super) async fn receive(&mut self, nonce: &[u8; 32]) -> io::Result<()> {
        let (mut visitor, _) = self.0.accept().await?;
        // Who does not read 32 bytes has gone.
        let _ = visitor.write_all(nonce).await;
        Ok(())
    }
}

/// Visits a place and takes the nonce from there.
pub(super) async fn visit(place: [u8; 16]) -> io::Result<[u8; 32]> {
    let mut host = UnixStream::connect(name(place)).await?;
    let mut nonce = [0; 32];
    host.read_exact(&mut nonce).await?;
    Ok(nonce)
}

/// The leading NUL makes the name an abstract one.
fn name(place: [u8; 16]) -> PathBuf {
    OsString::from(format!("\0tropa-rendezvous-{}", hex(&place))).into()
}
