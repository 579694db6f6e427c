//! The few programs that a reader may ask, where a platform shows a signal in no file.
//!
//! Three in all: `reg.exe` (Windows, and the Windows around WSL2), `sysctl` and `ioreg` (macOS). Each by its full
//! path, without a shell, with fixed arguments, a bounded answer and a limit of time.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tropa_proto::evidence::Reading;

use super::files::rejected;

/// How long a program may take: starting `reg.exe` through WSL's interop takes some 100 ms, and hangs where the
/// interop is broken (`identity.md` §3.3).
const LIMIT: Duration = Duration::from_secs(2);

/// Bytes of an answer: the largest, the table of the firmware in hexadecimal, has some hundred thousand on a server.
pub const MAX_OUTPUT: usize = 1 << 20;

/// Runs a program and gives what it prints; more than [`MAX_OUTPUT`] bytes are no answer.
#[must_use]
pub fn output(program: &str, arguments: &[&str]) -> Reading<String> {
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Reading::Absent,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Reading::Denied,
        Err(error) => return rejected(&format!("cannot be asked: {error}")),
    };
    let (send, answer) = mpsc::sync_channel(1);
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stdout.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut bytes);
            let _ = send.send(read.map(|_| bytes));
        });
    }
    let answer = answer.recv_timeout(LIMIT);
    // Either it has said what is wanted or its time is over.
    let _ = child.kill();
    let _ = child.wait();
    match answer {
        Ok(Ok(bytes)) if bytes.len() > MAX_OUTPUT => rejected(&format!("longer than {MAX_OUTPUT} bytes")),
        Ok(Ok(bytes)) => Reading::Value(String::from_utf8_lossy(&bytes).into_owned()),
        Ok(Err(error)) => rejected(&format!("cannot be read: {error}")),
        Err(_) => rejected("no answer within 2 s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_talks_without_end_or_hangs_is_a_reading() {
        assert_eq!(output("/no/such/program", &[]), Reading::Absent);
        assert_eq!(output("/bin/echo", &["hello"]), Reading::Value("hello\n".into()));
        assert!(matches!(output("/bin/sh", &["-c", "exec yes"]), Reading::Rejected(_)));
        assert!(matches!(output("/bin/sh", &["-c", "exec sleep 60"]), Reading::Rejected(_)));
    }
}
