//! What a journal makes of a disk that lost the end of its log, or turned a bit (`reliability.md` §7.6, CC4).

use super::*;

const CHUNKS: u32 = 40;

/// A journal whose log holds one transaction per result, copied while it was open: what a power cut leaves.
struct Scene {
    _temp: TempDir,
    db: Vec<u8>,
    log: Vec<u8>,
    copy: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("job");
        // Closing moves the input out of the log and into the database.
        drop(journal_at(&dir, CHUNKS));
        let journal = Journal::open(&dir).unwrap();
        let (writer, mut reports) = journal.writer().unwrap();
        for n in 0..CHUNKS {
            for step in [attempt(n, 1), result(n, 1, format!("r{n}").as_bytes())] {
                writer.submit(Token(0), step).unwrap();
                assert!(matches!(next(&mut reports), Some(Committed::Steps(_))));
            }
        }
        let file = directory::database(&dir);
        let (db, log) =
            (std::fs::read(&file).unwrap(), std::fs::read(file.with_extension("db-wal")).unwrap());
        writer.finish();
        drop(journal);
        let copy = temp.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(dir.join("key"), copy.join("key")).unwrap();
        Self { _temp: temp, db, log, copy }
    }

    /// Opens a copy with these contents; gives how many results it holds, which must be those that came first,
    /// each as it was committed.
    fn open(&self, db: &[u8], log: &[u8]) -> Result<u32, Error> {
        let file = directory::database(&self.copy);
        let _ = std::fs::remove_file(file.with_extension("db-shm"));
        std::fs::write(&file, db).unwrap();
        std::fs::write(file.with_extension("db-wal"), log).unwrap();
        let journal = Journal::open(&self.copy)?;
        let finished = journal.load()?.finished;
        for n in 0..CHUNKS {
            match journal.item(n)? {
                Some(item) => {
                    assert!(n < finished.done(), "{n} is there and an earlier one is not");
                    let Decided::Done(done) = item.decided else { panic!("{:?}", item.decided) };
                    assert_eq!(done.body, format!("r{n}").as_bytes());
                }
                None => assert!(n >= finished.done(), "{n} is missing and a later one is not"),
            }
        }
        Ok(finished.done())
    }
}

/// A small generator of pseudo-random numbers (xorshift), so that a failure can be repeated from its seed.
fn random(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    usize::try_from(*seed >> 1).unwrap_or(0)
}

#[test]
fn a_log_cut_anywhere_opens_with_the_results_that_came_first() {
    let scene = Scene::new();
    assert_eq!(scene.open(&scene.db, &scene.log).unwrap(), CHUNKS);
    // The log begins with 32 bytes; a frame is 24 bytes and a page.
    let borders = (0..).map(|n| 32 + n * (24 + 4096)).take_while(|cut| *cut < scene.log.len());
    let mut seed = 0x7f3c_9022_u64;
    let places: Vec<usize> = (0..50).map(|_| random(&mut seed) % scene.log.len()).collect();
    let mut seen = BTreeSet::new();
    for cut in borders.chain(places) {
        let done =
            scene.open(&scene.db, &scene.log[..cut]).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        seen.insert(done);
    }
    assert!(seen.len() > 20, "the cuts met {} states only", seen.len());
}

#[test]
fn a_turned_bit_is_noticed_or_changes_no_committed_result() {
    let scene = Scene::new();
    let mut seed = 0x91c2_a77a_u64;
    let mut noticed = 0;
    for round in 0..100 {
        let (mut db, mut log) = (scene.db.clone(), scene.log.clone());
        let file = if round % 2 == 0 { &mut db } else { &mut log };
        let (byte, bit) = (random(&mut seed) % file.len(), random(&mut seed) % 8);
        file[byte] ^= 1 << bit;
        // `open` panics where a result is not what was committed.
        match scene.open(&db, &log) {
            Ok(CHUNKS) => {}
            Ok(_) => noticed += 1,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                noticed += 1;
            }
        }
    }
    assert!(noticed > 30, "{noticed} of 100 turned bits were noticed");
}
