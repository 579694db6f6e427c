//! What one process wrote to systemd's journal since the boot, read from the files and not by asking a program.
//!
//! A journal file is a heap of objects. Each different `FIELD=value` is one of them and is found by its hash; it
//! leads to its entries, and an entry to its values. So the lines of one process are found without reading the
//! journal. The format is that of systemd's *Journal File Format*, with keyed hashes (since 246), in its regular and
//! its compact form. A file that is damaged, hostile or being written is read within bounds: offsets are checked by
//! reading there, and every walk has a limit.
//!
//! Long values are compressed, by default from 512 bytes on: such a line is [`UNREADABLE`], and so is one in a form
//! that is not known.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
};

use tropa_proto::{canonical, evidence::Reading};

use super::{
    super::files::{Root, failed, rejected},
    UNREADABLE,
};

/// Lines of one process, from its first: it names its devices among the first twenty; with debugging, two hundred.
const MAX_LINES: usize = 1024;

/// Files of the journal: a full one is kept beside the present one until there are a hundred, by default.
const MAX_FILES: usize = 256;

/// Entries of one process number in one file that are looked at: earlier boots used the number too.
const MAX_ENTRIES: u64 = 16_384;

/// Values with one hash, or of one entry: systemd writes some thirty.
const MAX_VALUES: usize = 1024;

/// Bytes of one value that are read; a line of a device has some 350.
const MAX_VALUE: u64 = 4096;

/// Readings from all files of the journal together, some seconds of them: what systemd writes needs some thousand, and
/// only a file that was made for it needs more.
const MAX_READINGS: u32 = 1 << 20;

const MESSAGE: &[u8] = b"MESSAGE=";

/// Kinds of objects.
const DATA: u8 = 1;
const ENTRY: u8 = 3;
const ENTRY_ARRAY: u8 = 6;

/// What a reader must know to read the file: compression of single values (1, 2, 8), keyed hashes, compact objects.
const KNOWN: u32 = 1 | 2 | 8 | KEYED | COMPACT;
const KEYED: u32 = 4;
const COMPACT: u32 = 16;

/// A line with its time and number, by which lines of several files are put in order.
type Line = (u64, u64, String);

/// Reads the first lines of a process of this boot, oldest first; [`UNREADABLE`] stands for what is compressed.
/// `Absent` where the journal has none.
pub(super) fn lines(root: &Root, process: u32) -> Reading<Vec<String>> {
    let boot = root.text("proc/sys/kernel/random/boot_id").and_then(|text| canonical::uuid(&text));
    let boot = boot.value().and_then(|text| u128::from_str_radix(&text.replace('-', ""), 16).ok());
    let Some(boot) = boot else { return rejected("which boot this is, is not known") };
    let mut lines: Vec<Line> = Vec::new();
    let mut trouble = Reading::Absent;
    let left = Cell::new(MAX_READINGS);
    for path in files(root) {
        let read = root.regular(&path).and_then(|file| {
            Journal::open(&file, &left).and_then(|journal| journal.lines(process, boot)).or_reading()
        });
        match read {
            Reading::Value(found) | Reading::Virtual(found) => lines.extend(found),
            Reading::Absent => {}
            Reading::Denied => trouble = Reading::Denied,
            Reading::Rejected(why) => trouble = Reading::Rejected(why),
        }
    }
    if lines.is_empty() {
        return trouble;
    }
    lines.sort();
    Reading::Value(lines.into_iter().map(|(_, _, line)| line).take(MAX_LINES).collect())
}

/// The files of the journal: those that are kept, and those of the time before there was a disk.
fn files(root: &Root) -> Vec<String> {
    let mut files = Vec::new();
    for place in ["run/log/journal", "var/log/journal"] {
        for machine in root.names(place) {
            let directory = format!("{place}/{machine}");
            let names = root.names(&directory).into_iter().filter(|name| name.ends_with(".journal"));
            files.extend(names.map(|name| format!("{directory}/{name}")));
        }
    }
    files.truncate(MAX_FILES);
    files
}

/// Why a file could not be read.
enum Trouble {
    Io(std::io::Error),
    Format(&'static str),
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Self::Format("a file of the journal is damaged")
        } else {
            Self::Io(error)
        }
    }
}

/// A result as a reading.
trait OrReading<T> {
    fn or_reading(self) -> Reading<T>;
}

impl<T> OrReading<T> for Result<T, Trouble> {
    fn or_reading(self) -> Reading<T> {
        match self {
            Ok(value) => Reading::Value(value),
            Err(Trouble::Io(error)) => failed(&error),
            Err(Trouble::Format(why)) => rejected(why),
        }
    }
}

/// One file of the journal.
struct Journal<'a> {
    file: Source<'a>,
    id: [u8; 16],
    compact: bool,
    /// Where the table of hashes is, and how many places it has.
    table: u64,
    places: u64,
}

impl<'a> Journal<'a> {
    fn open(file: &'a File, left: &'a Cell<u32>) -> Result<Self, Trouble> {
        let file = Source { file, left };
        let mut header = [0; 120];
        file.read_at(&mut header, 0)?;
        let flags = u32_at(&header, 12);
        if !header.starts_with(b"LPKSHHRH") {
            return Err(Trouble::Format("a file of the journal is no such file"));
        }
        if flags & !KNOWN != 0 || flags & KEYED == 0 {
            return Err(Trouble::Format("a file of the journal has a form that is not known"));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&header[24..40]);
        Ok(Self {
            file,
            id,
            compact: flags & COMPACT != 0,
            table: u64_at(&header, 104),
            places: u64_at(&header, 112) / 16,
        })
    }

    /// The first lines of a process in a boot.
    fn lines(&self, process: u32, boot: u128) -> Result<Vec<Line>, Trouble> {
        let value = format!("_PID={process}");
        let Some((first, array, count)) = self.find(value.as_bytes())? else { return Ok(Vec::new()) };
        let mut known = BTreeMap::new();
        let mut lines = Vec::new();
        for entry in self.entries(first, array, count.min(MAX_ENTRIES))? {
            let (header, size) = self.object(entry, ENTRY, 64)?;
            // As it lies in the file, which is also the order of its digits.
            if u128::from_be_bytes(header[40..56].try_into().unwrap_or_default()) == boot {
                let text = self.message(entry, size, &mut known)?;
                lines.push((u64_at(&header, 24), u64_at(&header, 16), text));
            }
            if lines.len() == MAX_LINES {
                break;
            }
        }
        Ok(lines)
    }

    /// Finds a value by its hash: its first entry, the array of its other entries, and how many there are in all.
    fn find(&self, value: &[u8]) -> Result<Option<(u64, u64, u64)>, Trouble> {
        if self.places == 0 {
            return Ok(None);
        }
        let hash = siphash24(&self.id, value);
        let mut at = self.number(self.table.saturating_add(hash % self.places * 16))?;
        for _ in 0..MAX_VALUES {
            if at == 0 {
                return Ok(None);
            }
            let (header, size) = self.object(at, DATA, 64)?;
            if u64_at(&header, 16) == hash && self.payload(at, size)? == value {
                return Ok(Some((u64_at(&header, 40), u64_at(&header, 48), u64_at(&header, 56))));
            }
            at = u64_at(&header, 24);
        }
        Err(Trouble::Format("a file of the journal is damaged"))
    }

    /// Where a value's entries are, oldest first.
    fn entries(&self, first: u64, mut array: u64, count: u64) -> Result<Vec<u64>, Trouble> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let mut entries = Vec::new();
        entries.extend(Some(first).filter(|first| *first != 0 && count > 0));
        let item: usize = if self.compact { 4 } else { 8 };
        while array != 0 && entries.len() < count {
            let (header, size) = self.object(array, ENTRY_ARRAY, 24)?;
            let room = size.saturating_sub(24) / item as u64;
            let wanted = usize::try_from(room).unwrap_or(usize::MAX).min(count - entries.len());
            let mut items = vec![0; wanted * item];
            self.file.read_at(&mut items, array.saturating_add(24))?;
            let offsets = items.chunks_exact(item).map(|item| match item {
                [a, b, c, d] => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
                _ => u64_at(item, 0),
            });
            // Places that are not used yet are empty.
            let used = offsets.take_while(|offset| *offset != 0);
            let before = entries.len();
            entries.extend(used);
            if entries.len() == before {
                break;
            }
            array = u64_at(&header, 16);
        }
        Ok(entries)
    }

    /// The line of an entry. Most values are shared by all entries of a process: `known` remembers which are no lines.
    fn message(&self, entry: u64, size: u64, known: &mut BTreeMap<u64, ()>) -> Result<String, Trouble> {
        let item: u64 = if self.compact { 4 } else { 16 };
        let count = (size.saturating_sub(64) / item).min(MAX_VALUES as u64);
        for number in 0..count {
            let place = entry.saturating_add(64 + number * item);
            let at =
                if self.compact { self.number(place)? & u64::from(u32::MAX) } else { self.number(place)? };
            if known.contains_key(&at) {
                continue;
            }
            let (header, size) = self.object(at, DATA, 64)?;
            // Which field a compressed value is of shows only when it is unpacked.
            if header[1] == 0 {
                let payload = self.payload(at, size)?;
                if let Some(text) = payload.strip_prefix(MESSAGE) {
                    let text = String::from_utf8_lossy(text).into_owned();
                    return Ok(if size > MAX_VALUE { UNREADABLE.to_owned() } else { text });
                }
                known.insert(at, ());
            }
        }
        Ok(UNREADABLE.to_owned())
    }

    /// The first bytes of an object of a kind, and its size.
    fn object(&self, at: u64, kind: u8, least: usize) -> Result<([u8; 64], u64), Trouble> {
        let mut bytes = [0; 64];
        self.file.read_at(&mut bytes[..least], at)?;
        let size = u64_at(&bytes, 8);
        if bytes[0] == kind && size >= least as u64 {
            Ok((bytes, size))
        } else {
            Err(Trouble::Format("a file of the journal is damaged"))
        }
    }

    /// A value, at most its first [`MAX_VALUE`] bytes.
    fn payload(&self, at: u64, size: u64) -> Result<Vec<u8>, Trouble> {
        let start: u64 = if self.compact { 72 } else { 64 };
        let length = usize::try_from(size.saturating_sub(start).min(MAX_VALUE)).unwrap_or_default();
        let mut payload = vec![0; length];
        self.file.read_at(&mut payload, at.saturating_add(start))?;
        Ok(payload)
    }

    fn number(&self, at: u64) -> Result<u64, Trouble> {
        let mut bytes = [0; 8];
        self.file.read_at(&mut bytes, at)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// A file that nobody else reads, and how often it may still be read.
struct Source<'a> {
    file: &'a File,
    left: &'a Cell<u32>,
}

impl Source<'_> {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<(), Trouble> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(Trouble::Format("the journal takes too long to read"));
        };
        self.left.set(left);
        // Beyond what a file can have, a place is beyond its end.
        if i64::try_from(at).is_err() {
            return Err(Trouble::Format("a file of the journal is damaged"));
        }
        let mut file = self.file;
        file.seek(SeekFrom::Start(at))?;
        Ok(file.read_exact(bytes)?)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// SipHash-2-4 (Aumasson and Bernstein), the hash of journals; the key is the id of the file.
pub(super) fn siphash24(key: &[u8; 16], text: &[u8]) -> u64 {
    let (k0, k1) = (u64_at(key, 0), u64_at(key, 8));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let words = text.chunks(8).map(|word| {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    let whole = text.len() / 8;
    let mut words: Vec<u64> = words.collect();
    words.resize(whole + 1, 0);
    words[whole] |= (text.len() as u64) << 56;
    for word in words {
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}
