//! Meeting at a named pipe, which belongs to this Windows: visitors of other machines are refused by the system.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::windows::named_pipe::{ClientOptions, NamedPipeServer, ServerOptions},
};
use tropa_proto::id::hex;

/// Tries to get in while another visitor is at the door, and between two of them: the next door opens in no time.
const TRIES: u32 = 20;

/// A place at which others are waited for.
pub(super) struct Host {
    name: String,
    door: NamedPipeServer,
}

impl Host {
    /// Begins to listen; a place that stands is not given twice.
    pub(super) fn at(place: [u8; 16]) -> io::Result<Self> {
        let name = name(place);
        let door =
            ServerOptions::new().first_pipe_instance(true).reject_remote_clients(true).create(&name)?;
        Ok(Self { name, door })
    }

    /// Waits for a visitor and gives it the nonce.
    pub(super) async fn receive(&mut self, nonce: &[u8; 32]) -> io::Result<()> {
        self.door.connect().await?;
        let next = ServerOptions::new().reject_remote_clients(true).create(&self.name)?;
        let mut visitor = std::mem::replace(&mut self.door, next);
        // Who does not read 32 bytes has gone. What is written waits in the pipe until the visitor closes it.
        if visitor.write_all(nonce).await.is_ok() {
            let _ = visitor.read(&mut [0]).await;
        }
        Ok(())
    }
}

/// Visits a place and takes the nonce from there.
pub(super) async fn visit(place: [u8; 16]) -> io::Result<[u8; 32]> {
    /// `ERROR_PIPE_BUSY`.
    const BUSY: i32 = 231;
    let mut tries = 1;
    let mut host = loop {
        match ClientOptions::new().open(name(place)) {
            Err(error) if error.raw_os_error() == Some(BUSY) && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => break opened?,
        }
    };
    let mut nonce = [0; 32];
    host.read_exact(&mut nonce).await?;
    Ok(nonce)
}

fn name(place: [u8; 16]) -> String {
    format!(r"\\.\pipe\tropa-rendezvous-{}", hex(&place))
}
