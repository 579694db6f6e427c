//! Raw text into canonical values: one parser per signal, used by the readers and by the truth tables alike.
//!
//! Every function is pure and total: whatever a file says, the answer is a [`Reading`]. A value that a vendor, an
//! image or a boot stage hands out to everybody is `Rejected` and says why; it never becomes evidence. The forms
//! are those of `identity.md` §3; the denylists are data with a version.

use std::collections::BTreeSet;

use crate::{
    bounded::{List, Text},
    evidence::Reading,
};

/// Version of the denylists below; raised with every change, so that a verdict can be explained later.
pub const DENYLIST_VERSION: u16 = 1;

/// Machine-ids that are shipped to everybody. Whonix: `b08d…`.
const SHARED_MACHINE_IDS: [&str; 1] = ["b08dfa6083e7567a1921a715000001fb"];

/// SMBIOS UUIDs that vendors leave as they come (oshi/oshi#2417, henrygd/beszel#1556), in either byte order.
const SHARED_PRODUCT_UUIDS: [&str; 1] = ["03000200-0400-0500-0006-000700080009"];

/// 2020-01-01 in nanoseconds since 1970. An earlier boot means a clock that nobody has set yet.
const EARLIEST_EPOCH_NS: i64 = 1_577_836_800_000_000_000;

/// Digits of a board's serial number or of an NVMe one; longer text is not a serial number.
const MAX_SERIAL: usize = 128;

/// The highest processor or node number that a list may name; Linux builds go up to 8,192 processors.
const MAX_CPU: u16 = 8191;

/// Reads a UUID: without braces, lower case, 8-4-4-4-12 hexadecimal digits. Version bits are not checked.
#[must_use]
pub fn uuid(text: &str) -> Reading<String> {
    let text = trimmed(text).trim_start_matches('{').trim_end_matches('}').to_ascii_lowercase();
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    if text.is_empty() {
        rejected("empty")
    } else if lengths != [8, 4, 4, 4, 12] || !groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit()) {
        rejected("not a UUID")
    } else if all_equal(&groups.concat()) {
        rejected("all digits are equal")
    } else {
        Reading::Value(text)
    }
}

/// Reads the content of a machine-id file: 32 hexadecimal digits, lower case.
#[must_use]
pub fn machine_id(text: &str) -> Reading<String> {
    let text = trimmed(text).to_ascii_lowercase();
    if text.is_empty() {
        rejected("empty")
    } else if text == "uninitialized" {
        rejected("uninitialized: early in the first boot")
    } else if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        rejected("not 32 hexadecimal digits")
    } else if all_equal(&text) {
        rejected("all digits are equal")
    } else if SHARED_MACHINE_IDS.contains(&text.as_str()) {
        rejected("shipped to everybody")
    } else {
        Reading::Value(text)
    }
}

/// Reads an SMBIOS UUID as the smaller of its two byte orders: kernels have changed the order
/// (hashicorp/consul#4914).
#[must_use]
pub fn product_uuid(text: &str) -> Reading<String> {
    uuid(text).and_then(|value| {
        let canonical = smaller_order(value);
        let shared = SHARED_PRODUCT_UUIDS.iter().any(|known| smaller_order((*known).to_owned()) == canonical);
        if shared { rejected("a vendor's default") } else { Reading::Value(canonical) }
    })
}

/// Reads a board's serial number, for boards without DMI. Same slot as [`product_uuid`], other type of tag: its
/// canonical form is told apart by the prefix `serial:`.
#[must_use]
pub fn board_serial(text: &str) -> Reading<String> {
    let text = trimmed(text).to_ascii_lowercase();
    if !is_serial(&text) {
        rejected(NO_SERIAL)
    } else if text.bytes().all(|byte| byte == b'0') {
        rejected("all zero")
    } else {
        Reading::Value(format!("{SERIAL_PREFIX}{text}"))
    }
}

/// Marks a [`board_serial`] among the values of its slot.
pub(crate) const SERIAL_PREFIX: &str = "serial:";

/// Reads a processor's protected serial number: hexadecimal, not zero.
#[must_use]
pub fn ppin(text: &str) -> Reading<String> {
    let text = trimmed(text).to_ascii_lowercase();
    let digits = text.strip_prefix("0x").unwrap_or(&text).trim_start_matches('0');
    if digits.is_empty() {
        rejected("zero or empty")
    } else if digits.len() > 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        rejected("not a 64-bit hexadecimal number")
    } else {
        Reading::Value(digits.to_owned())
    }
}

/// Reads a MAC address that passed the reader's filter: six octets, lower case.
#[must_use]
pub fn mac(text: &str) -> Reading<String> {
    let text = trimmed(text).to_ascii_lowercase().replace('-', ":");
    let octets: Vec<&str> = text.split(':').collect();
    let well_formed = octets.len() == 6
        && octets.iter().all(|octet| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if !well_formed {
        rejected("not six octets")
    } else if octets.iter().all(|octet| *octet == "00" || *octet == "ff") && all_equal(&octets.concat()) {
        rejected("zero or broadcast")
    } else {
        Reading::Value(text)
    }
}

/// Reads an NVMe serial number.
#[must_use]
pub fn nvme_serial(text: &str) -> Reading<String> {
    let text = trimmed(text);
    if !is_serial(text) {
        rejected(NO_SERIAL)
    } else if all_equal(text) {
        rejected("all characters are equal")
    } else {
        Reading::Value(text.to_owned())
    }
}

/// Reads the id that a vendor gives a GPU or a slice (`GPU-…`, `MIG-…`, a number): lower case, not zero.
#[must_use]
pub fn gpu_id(text: &str) -> Reading<String> {
    let text = trimmed(text).to_ascii_lowercase();
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_start_matches("0x");
    let zero = !digits.is_empty() && digits.bytes().all(|byte| matches!(byte, b'0' | b'-'));
    if !is_serial(&text) {
        rejected(NO_SERIAL)
    } else if zero && (text == digits || text.starts_with("0x") || digits.len() == 36) {
        rejected("zero")
    } else {
        Reading::Value(text)
    }
}

/// Reads a processor's name, and takes it only if it is a retail one: presets of hypervisors (`Common KVM
/// processor`, `Intel Xeon Processor (Skylake)`) say nothing about the machine and are absent.
#[must_use]
pub fn cpu_model(text: &str) -> Reading<Text<64>> {
    let lower = text.to_ascii_lowercase();
    if ["qemu", "kvm", "virtual", "class"].iter().any(|word| lower.contains(word)) || has_wildcard(&lower) {
        return Reading::Absent;
    }
    let before_clock = text.split('@').next().unwrap_or_default();
    let mut name = String::new();
    let mut depth = 0_u32;
    for character in before_clock.chars() {
        match character {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            inside if depth == 0 => name.push(inside),
            _ => {}
        }
    }
    let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
    let three_digits = name.as_bytes().windows(3).any(|three| three.iter().all(u8::is_ascii_digit));
    let apple = name
        .split("Apple M")
        .skip(1)
        .any(|rest| rest.chars().next().is_some_and(|first| first.is_ascii_digit()));
    if three_digits || apple { Reading::Value(Text::cut(&name)) } else { Reading::Absent }
}

/// Reads a boot epoch in nanoseconds since 1970; before 2020 no clock has been set (`identity.md` §3.1).
#[must_use]
pub fn epoch(ns: i64) -> Reading<i64> {
    if ns < EARLIEST_EPOCH_NS { rejected("before 2020: the clock is not set") } else { Reading::Value(ns) }
}

/// Collects single readings into a sorted set without repetitions: the valid ones if there are any, else what kept
/// them back. More values than the bound are refused as a whole, never truncated.
#[must_use]
pub fn set<const MAX: usize>(
    readings: impl IntoIterator<Item = Reading<String>>,
) -> Reading<List<String, MAX>> {
    let mut values = BTreeSet::new();
    let mut otherwise = Reading::Absent;
    for reading in readings {
        match reading {
            Reading::Value(value) => {
                values.insert(value);
            }
            Reading::Denied => otherwise = Reading::Denied,
            Reading::Rejected(why) if otherwise == Reading::Absent => otherwise = Reading::Rejected(why),
            Reading::Virtual(_) | Reading::Absent | Reading::Rejected(_) => {}
        }
    }
    if values.is_empty() {
        return otherwise;
    }
    match List::new(values.into_iter().collect()) {
        Ok(list) => Reading::Value(list),
        Err(too_long) => rejected(&too_long.to_string()),
    }
}

/// Reads a list of numbers as the kernel writes it, `0,2-3`; `None` where it is not one or names more than 8,191.
#[must_use]
pub fn cpu_list(text: &str) -> Option<BTreeSet<u16>> {
    let mut numbers = BTreeSet::new();
    for part in trimmed(text).split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
        if first > last || last > MAX_CPU {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// Writes numbers as the kernel does: `0,2-3`.
#[must_use]
pub fn cpu_list_text(numbers: &BTreeSet<u16>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if number - *last == 1 => *last = number,
            Some(_) | None => runs.push((number, number)),
        }
    }
    let texts: Vec<String> = runs
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    texts.join(",")
}

/// Text of the kernel or the firmware without blanks and NULs around it.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0')
}

/// What makers give is one line of printable ASCII (NVM Express: ASCII, 20 bytes); anything else is not what they gave.
fn is_serial(text: &str) -> bool {
    (1..=MAX_SERIAL).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

const NO_SERIAL: &str = "empty, too long, or not one line of ASCII";

fn rejected<T>(why: &str) -> Reading<T> {
    Reading::Rejected(Text::cut(why))
}

fn all_equal(text: &str) -> bool {
    let mut characters = text.chars();
    let first = characters.next();
    characters.all(|character| Some(character) == first)
}

/// Digits followed by `xx`, as in `Xeon E312xx`: a family, not a model.
fn has_wildcard(lower: &str) -> bool {
    lower.as_bytes().windows(3).any(|three| three[0].is_ascii_digit() && &three[1..] == b"xx")
}

/// The smaller of a UUID and of the same with its first three groups reversed bytewise.
fn smaller_order(uuid: String) -> String {
    let reversed = |group: &str| -> String {
        (0..group.len() / 2).rev().map(|byte| &group[byte * 2..byte * 2 + 2]).collect()
    };
    let swapped =
        [&reversed(&uuid[..8]), "-", &reversed(&uuid[9..13]), "-", &reversed(&uuid[14..18]), &uuid[18..]]
            .concat();
    uuid.min(swapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> Option<String> {
        match cpu_model(text) {
            Reading::Value(name) => Some(name.to_string()),
            Reading::Virtual(_) | Reading::Absent | Reading::Denied | Reading::Rejected(_) => None,
        }
    }

    #[test]
    fn a_uuid_in_braces_and_upper_case_is_the_same_uuid() {
        let plain = uuid("60000000-0000-4000-8000-00000000000a");
        assert_eq!(uuid("{60000000-0000-4000-8000-00000000000A}\n"), plain);
        assert!(matches!(plain, Reading::Value(_)));
    }

    #[test]
    fn junk_is_rejected_as_a_uuid() {
        for junk in
            ["", "Not Present", "ffffffff-ffff-ffff-ffff-ffffffffffff", "é0000000-0000-4000-8000-00000000000"]
        {
            assert!(matches!(uuid(junk), Reading::Rejected(_)), "{junk}");
            assert!(matches!(product_uuid(junk), Reading::Rejected(_)), "{junk}");
        }
    }

    #[test]
    fn both_byte_orders_of_an_smbios_uuid_are_one_value() {
        let one = product_uuid("11223344-5566-7788-99aa-bbccddeeff00");
        assert_eq!(one, product_uuid("44332211-6655-8877-99AA-BBCCDDEEFF00"));
        assert_eq!(one, Reading::Value("11223344-5566-7788-99aa-bbccddeeff00".to_owned()));
    }

    #[test]
    fn a_vendors_default_is_rejected_in_both_byte_orders() {
        for text in ["03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009"] {
            assert!(matches!(product_uuid(text), Reading::Rejected(_)), "{text}");
        }
    }

    #[test]
    fn a_machine_id_that_everybody_has_is_rejected() {
        for text in ["", "uninitialized\n", "b08dfa6083e7567a1921a715000001fb", &"0".repeat(32), "abc"] {
            assert!(matches!(machine_id(text), Reading::Rejected(_)), "{text}");
        }
        let id = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1";
        assert_eq!(machine_id(&format!("{}\n", id.to_uppercase())), Reading::Value(id.to_owned()));
    }

    #[test]
    fn only_retail_names_of_processors_count() {
        assert_eq!(
            model("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz").as_deref(),
            Some("Intel Core i7-8700K CPU")
        );
        assert_eq!(
            model("AMD Ryzen 9  7950X 16-Core Processor").as_deref(),
            Some("AMD Ryzen 9 7950X 16-Core Processor")
        );
        assert_eq!(model("Apple M3").as_deref(), Some("Apple M3"));
        for preset in [
            "AMD EPYC-Rome Processor",
            "Intel Xeon Processor (Skylake, IBRS 1234)",
            "Common KVM processor",
            "QEMU Virtual CPU version 2.5.300",
            "Intel Xeon E312xx (Sandy Bridge)",
            "Core i7",
            "",
        ] {
            assert_eq!(model(preset), None, "{preset}");
        }
    }

    #[test]
    fn an_epoch_before_2020_is_rejected() {
        assert!(matches!(epoch(0), Reading::Rejected(_)));
        assert!(matches!(epoch(EARLIEST_EPOCH_NS), Reading::Value(_)));
    }

    #[test]
    fn zero_is_no_id_of_a_gpu_and_a_name_is() {
        for zero in ["", "0", "0x0000000000000000", "GPU-00000000-0000-0000-0000-000000000000"] {
            assert!(matches!(gpu_id(zero), Reading::Rejected(_)), "{zero}");
        }
        assert_eq!(gpu_id("unified-gpu-0"), Reading::Value("unified-gpu-0".to_owned()));
        assert!(matches!(gpu_id("GPU-00000000-0000-4000-8000-000000000001"), Reading::Value(_)));
    }

    #[test]
    fn a_serial_is_one_line_of_ascii() {
        let junk = ["", "\0", "é4EWNX0N123456", "S4EW\nNX0N", "S4EW\u{1b}[2J", &"1".repeat(MAX_SERIAL + 1)];
        for read in [board_serial, nvme_serial, gpu_id] {
            for text in junk {
                assert!(matches!(read(text), Reading::Rejected(_)), "{text:?}");
            }
            assert!(matches!(read("S4EW NX0N123456      \n"), Reading::Value(_)));
        }
    }

    #[test]
    fn a_processor_list_survives_its_text() {
        let list = cpu_list("0,2-3\n").unwrap();
        assert_eq!(list, BTreeSet::from([0, 2, 3]));
        assert_eq!(cpu_list_text(&list), "0,2-3");
        for junk in ["3-1", "a", "0-99999", "1-"] {
            assert_eq!(cpu_list(junk), None, "{junk}");
        }
    }

    #[test]
    fn a_set_is_sorted_and_refused_beyond_its_bound() {
        let ppins = set::<2>(["0xB", "a", "0", "b"].map(ppin));
        assert_eq!(ppins, Reading::Value(List::new(vec!["a".to_owned(), "b".to_owned()]).unwrap()));
        assert!(matches!(set::<1>(["a", "b"].map(ppin)), Reading::Rejected(_)));
        assert_eq!(set::<1>([]), Reading::Absent);
    }
}
