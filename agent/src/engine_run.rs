//! Which process the install's Ollama is at present: what was learned of one does not hold for another.
//!
//! Nothing in Ollama's API names its process. So the agent holds one connection on which nothing is ever sent. Ollama's
//! server has no limit for idle ones (an `http.Server` without timeouts, `server/routes.go` of 0.24.0), so the connection
//! ends when the process does, on every system and without any rights. Measured with 0.24.0: idle for 400 s and stopped
//! for 3 s it stayed; at SIGTERM and SIGKILL it ended within 12 ms, and the next one was refused. A proxy in between may
//! end it earlier: then the process counts as another one, which costs a measurement too many; but one that does so by
//! habit is seen through ([`Told`]).

use std::{sync::Arc, time::Duration};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tropa_proto::{evidence::Key, id::EngineRun};

use crate::{
    Config,
    clock::now,
    evidence::{Root, process},
    ollama::Ollama,
    stock,
};

/// The limit for a connection to an install on the same machine (`ollama-api.md` §7).
const CONNECT: Duration = Duration::from_secs(2);

/// The pause between two tries while nothing answers, and the longest behind a listener that takes connections for an
/// engine that is not there.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A connection that ended so soon was taken by something in front of an engine that is not there.
const FLEETING: Duration = Duration::from_secs(1);

/// One that lasted so long was not ended by habit: idle limits of proxies are a minute to an hour.
const LASTING: Duration = Duration::from_secs(3_600);

/// Connections in a row that ended while the next was taken at once, after which that is a habit of what listens.
const HABIT: u32 = 3;

/// The process of an install.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Engine {
    /// The one that was seen last.
    pub(crate) run: EngineRun,
    /// It takes connections.
    pub(crate) up: bool,
}

/// Where the numbers of processes come from.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    root: Root,
    key: Key,
    port: Option<u16>,
}

/// What connections have told, one after the other.
#[derive(Debug, Default)]
struct Told {
    /// The last one was taken, and stood.
    up: bool,
    /// So many in a row ended while the next was taken at once.
    quiet: u32,
    /// So many in a row ended as soon as they were taken.
    fleeting: u32,
}

/// Watches the process of an install for as long as anybody listens. Returns when the first connection was taken or
/// refused, after 2 s at most.
pub(crate) async fn watch(ollama: Arc<Ollama>, naming: Naming) -> watch::Receiver<Engine> {
    let (mut told, mut engine) = (Told::default(), Engine::default());
    let first = connect(&ollama).await;
    naming.tried(&mut engine, &mut told, first.is_some()).await;
    let (sender, receiver) = watch::channel(engine);
    tokio::spawn(async move {
        let mut connection = first;
        loop {
            let since = now();
            if let Some(connection) = connection.take() {
                tokio::select! {
                    () = ended(connection) => {}
                    // Whatever was refused, the engine may be gone where no packet tells.
                    () = ollama.refused() => {}
                    () = sender.closed() => return,
                }
                told.ended(now() - since);
            }
            tokio::select! {
                () = sleep(told.pause()) => {}
                () = sender.closed() => return,
            }
            connection = connect(&ollama).await;
            let before = engine;
            naming.tried(&mut engine, &mut told, connection.is_some()).await;
            if engine.run != before.run {
                ollama.is_another();
            }
            sender.send_if_modified(|known| std::mem::replace(known, engine) != engine);
        }
    });
    receiver
}

impl Told {
    /// A connection was tried, the first one or when the one before was over. Says whether it leads to another process,
    /// for all that is known.
    fn tried(&mut self, taken: bool) -> bool {
        let was_up = std::mem::replace(&mut self.up, taken);
        self.quiet = if was_up && taken { self.quiet.saturating_add(1) } else { 0 };
        taken && self.quiet <= HABIT
    }

    /// The connection is over that was held so long.
    fn ended(&mut self, lasted: Duration) {
        if lasted < FLEETING {
            self.up = false;
            self.fleeting = self.fleeting.saturating_add(1);
        } else {
            self.fleeting = 0;
        }
        if lasted >= LASTING {
            self.quiet = 0;
        }
    }

    /// How long to wait before the next is tried: not at all behind one that stood, so that an engine that starts anew
    /// is met while it refuses.
    fn pause(&self) -> Duration {
        if self.up {
            Duration::ZERO
        } else {
            (AGAIN.0 * 2u32.saturating_pow(self.fleeting.min(5))).min(AGAIN.1)
        }
    }
}

impl Naming {
    pub(crate) fn new(config: &Config) -> Self {
        let (_, port) = config.ollama.host_and_port();
        Self {
            root: config.root.clone(),
            key: Key::new(&stock::salt(config)),
            port: config.ollama.is_loopback().then_some(port),
        }
    }

    /// Takes in that a connection was tried.
    async fn tried(&self, engine: &mut Engine, told: &mut Told, taken: bool) {
        engine.up = taken;
        if told.tried(taken) {
            let (naming, before) = (self.clone(), engine.run);
            let named = tokio::task::spawn_blocking(move || naming.name(before)).await;
            engine.run = named.unwrap_or_else(|_| by_chance(before));
        }
    }

    /// A number for the process that listens now, another than `before`. Where the kernel shows the sockets that listen
    /// (Linux, to everybody), it is made of the number that the kernel gave to the install's, so that the next run of the
    /// agent finds it again; else it is chance.
    fn name(&self, before: EngineRun) -> EngineRun {
        let boot = self.root.line("proc/sys/kernel/random/boot_id");
        let sockets = self.port.map(|port| process::listening(&self.root, port)).unwrap_or_default();
        let (Some(boot), false) = (boot, sockets.is_empty()) else { return by_chance(before) };
        let sockets: Vec<String> = sockets.into_iter().collect();
        let [a, b, c, d, ..] = self.key.tag("engine run", &format!("{boot} {}", sockets.join(" "))).0;
        another(u32::from_be_bytes([a, b, c, d]), before).unwrap_or_else(|| by_chance(before))
    }
}

fn by_chance(before: EngineRun) -> EngineRun {
    let next = before.0.wrapping_add(1).max(1);
    getrandom::u32().ok().and_then(|drawn| another(drawn, before)).unwrap_or(EngineRun(next))
}

fn another(number: u32, before: EngineRun) -> Option<EngineRun> {
    Some(EngineRun(number)).filter(|run| *run != before && *run != EngineRun::UNKNOWN)
}

async fn connect(ollama: &Ollama) -> Option<TcpStream> {
    let (host, port) = ollama.base().host_and_port();
    timeout(CONNECT, TcpStream::connect((host.as_str(), port))).await.ok()?.ok()
}

/// Waits for the end of a connection; what a proxy may say before it is nothing to us.
async fn ended(mut connection: TcpStream) {
    let mut dropped = [0; 512];
    while matches!(connection.read(&mut dropped).await, Ok(1..)) {}
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tokio::net::TcpListener;
    use tropa_proto::evidence::Salt;

    use super::*;
    use crate::ollama::OllamaUrl;

    const MINUTE: Duration = Duration::from_secs(60);

    /// What is told by connections that are taken or refused, and that stand for so long where they are taken.
    fn told(tries: &[Option<Duration>]) -> (Told, Vec<bool>) {
        let mut told = Told::default();
        let another = tries.iter().map(|stood| {
            let another = told.tried(stood.is_some());
            stood.iter().for_each(|stood| told.ended(*stood));
            another
        });
        let another = another.collect();
        (told, another)
    }

    #[test]
    fn a_process_is_another_one_behind_a_refusal_and_behind_the_end_of_a_connection() {
        let stood = Some(MINUTE);
        assert_eq!(told(&[None, stood, None, None, stood]).1, [false, true, false, false, true]);
        assert_eq!(told(&[stood, stood]).1, [true, true]);
    }

    #[test]
    fn a_proxy_that_ends_idle_connections_by_habit_is_seen_through_until_it_refuses() {
        let stood = Some(MINUTE);
        let (_, another) = told(&[stood, stood, stood, stood, stood, stood, None, stood]);
        assert_eq!(another, [true, true, true, true, false, false, false, true]);
        let (_, another) = told(&[Some(LASTING); 8]);
        assert_eq!(another, [true; 8], "no idle limit is so long");
    }

    #[test]
    fn the_next_try_comes_at_once_behind_a_connection_that_stood_and_ever_later_behind_fleeting_ones() {
        assert_eq!(told(&[Some(MINUTE)]).0.pause(), Duration::ZERO);
        assert_eq!(told(&[Some(MINUTE), None]).0.pause(), AGAIN.0);
        let pauses = (1..8).map(|tries| told(&vec![Some(Duration::ZERO); tries]).0.pause().as_secs());
        assert_eq!(pauses.collect::<Vec<_>>(), [2, 4, 8, 16, 30, 30, 30]);
        let (told, another) = told(&[Some(Duration::ZERO), Some(MINUTE)]);
        assert_eq!((told.pause(), another), (Duration::ZERO, vec![true, true]));
    }

    /// A declared host with these sockets in its table, as inode and state.
    fn host(dir: &Path, boot: &str, sockets: &[(&str, &str)]) -> Naming {
        let table: String = sockets
            .iter()
            .map(|(inode, state)| {
                format!("   0: 0100007F:2CAA 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000 0 {inode} 1\n")
            })
            .collect();
        fs::create_dir_all(dir.join("proc/net")).unwrap();
        fs::create_dir_all(dir.join("proc/sys/kernel/random")).unwrap();
        fs::write(dir.join("proc/net/tcp"), format!("  sl  local_address\n{table}")).unwrap();
        fs::write(dir.join("proc/sys/kernel/random/boot_id"), boot).unwrap();
        Naming { root: Root::declared(dir), key: Key::new(&Salt::LOOPBACK), port: Some(11_434) }
    }

    #[test]
    fn a_socket_that_listens_has_one_number_in_every_run_of_the_agent_and_another_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let name = |boot, sockets: &[(&str, &str)]| host(dir.path(), boot, sockets).name(EngineRun::UNKNOWN);
        let first = name("b", &[("7001", "0A")]);
        assert_ne!(first, EngineRun::UNKNOWN);
        assert_eq!(name("b", &[("7001", "0A"), ("7002", "01")]), first, "a connection is not the socket");
        assert_ne!(name("b", &[("7003", "0A")]), first);
        assert_ne!(name("c", &[("7001", "0A")]), first, "after a boot the kernel counts anew");
        assert_ne!(host(dir.path(), "b", &[("7001", "0A")]).name(first), first, "it was told apart from it");
    }

    #[test]
    fn where_the_kernel_shows_no_socket_every_process_gets_a_number_by_chance() {
        let dir = tempfile::tempdir().unwrap();
        let naming = host(dir.path(), "b", &[]);
        let first = naming.name(EngineRun::UNKNOWN);
        let second = naming.name(first);
        assert!(first != second && ![first, second].contains(&EngineRun::UNKNOWN));
    }

    #[tokio::test]
    async fn the_number_is_another_one_when_the_port_is_served_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = OllamaUrl::parse(&address.to_string(), false).unwrap();
        let ollama = Arc::new(Ollama::new(url).unwrap());
        let naming =
            Naming { root: Root::live(), key: Key::new(&Salt::LOOPBACK), port: Some(address.port()) };
        let mut engine = watch(ollama, naming.clone()).await;
        let first = *engine.borrow_and_update();
        assert!(first.up && first.run != EngineRun::UNKNOWN);
        let held = listener.accept().await.unwrap();
        drop((listener, held));
        engine.changed().await.unwrap();
        assert_eq!(*engine.borrow_and_update(), Engine { up: false, ..first });
        let listener = TcpListener::bind(address).await.unwrap();
        engine.changed().await.unwrap();
        let second = *engine.borrow_and_update();
        assert!(second.up && ![first.run, EngineRun::UNKNOWN].contains(&second.run));
        if cfg!(target_os = "linux") {
            assert_eq!(naming.name(EngineRun::UNKNOWN), second.run, "it is that of the socket");
        }
        drop(listener);
    }
}
