//! The bytes of every message: frozen, whole, and harmless whatever they are (`security.md` §5.1).
//!
//! The exact bytes stand in `tests/golden/`, one line per value. A change there is a change of the protocol; when
//! it is meant, `TROPA_BLESS=1` writes the files anew.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "wire/arbitrary.rs"]
mod arbitrary;
#[path = "wire/fixed.rs"]
mod fixed;

use std::{fmt::Debug, fs, path::Path};

use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any},
    proptest,
    sample::Index,
};
use tropa_proto::{
    codec::{CodecError, Message, decode, encode},
    id::hex,
    message::{Announcement, Answer, Description, FromAgent, Question, ToAgent},
};

/// Cases per property: enough to meet every variant, few enough for a debug build.
const CASES: u32 = 96;

/// A varint of 64 bits that declares 2⁴⁰ elements.
const HUGE: [u8; 9] = [253, 0, 0, 0, 0, 0, 1, 0, 0];

/// Compares the bytes of fixed values with those on file, or writes them where that is asked for.
fn golden<M: Message + PartialEq + Debug>(name: &str, values: Vec<fixed::Named<M>>) {
    use std::fmt::Write as _;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.hex"));
    let mut found = String::new();
    for (what, value) in values {
        let bytes = encode(&value).unwrap();
        assert_eq!(decode::<M>(&bytes).unwrap(), value, "{what}");
        writeln!(found, "{what}: {}", hex(&bytes)).unwrap();
    }
    if std::env::var_os("TROPA_BLESS").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "{name}: the bytes have changed, and with them the protocol");
    }
    assert_eq!(found, expected, "{name}: values were added or taken away");
}

/// Gives the most address space that this process ever had, in bytes; `None` where that cannot be read.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

/// Puts a declared length of 2⁴⁰ at every place of every fixed value.
fn huge_lengths_are_refused<M: Message + Debug>(values: Vec<fixed::Named<M>>) {
    let before = peak();
    for (_, value) in values {
        let bytes = encode(&value).unwrap();
        for place in 1..bytes.len() {
            let spliced = [&bytes[..place], &HUGE, &bytes[place + 1..]].concat();
            // It may be a number that may be so large; then it is no length.
            if let Ok(number) = decode::<M>(&spliced) {
                assert!(encode(&number).unwrap().len() <= spliced.len());
            }
        }
    }
    if let (Some(before), Some(after)) = (before, peak()) {
        assert!(after - before < 1 << 30, "{} bytes were reserved", after - before);
    }
}

macro_rules! wire {
    ($module:ident, $type:ty, $generated:expr, $fixed:expr) => {
        mod $module {
            use super::*;

            #[test]
            fn its_bytes_are_those_on_file() {
                golden(stringify!($module), $fixed);
            }

            #[test]
            fn a_declared_length_of_2_to_the_40_reserves_nothing() {
                huge_lengths_are_refused($fixed);
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(CASES))]

                #[test]
                fn what_was_encoded_decodes_to_itself(value in $generated) {
                    let bytes = encode(&value).unwrap();
                    assert!(bytes.len() <= <$type as Message>::CAP);
                    assert_eq!(decode::<$type>(&bytes).unwrap(), value);
                }

                #[test]
                fn no_part_of_it_is_a_message(value in $generated, places in vec(any::<Index>(), 16)) {
                    let bytes = encode(&value).unwrap();
                    for place in places {
                        assert!(decode::<$type>(&bytes[..place.index(bytes.len())]).is_err());
                    }
                }

                #[test]
                fn one_byte_more_is_refused(value in $generated, extra in any::<u8>()) {
                    let mut bytes = encode(&value).unwrap();
                    bytes.push(extra);
                    let refused = decode::<$type>(&bytes);
                    assert!(matches!(refused, Err(CodecError::Trailing { extra: 1, .. } | CodecError::TooLarge { .. })));
                }

                #[test]
                fn flipped_bits_never_panic_and_what_decodes_is_in_range(
                    value in $generated,
                    flips in vec((any::<Index>(), 0..8_u8), 1..8),
                ) {
                    let mut bytes = encode(&value).unwrap();
                    for (place, bit) in flips {
                        let place = place.index(bytes.len());
                        bytes[place] ^= 1 << bit;
                    }
                    if let Ok(other) = decode::<$type>(&bytes) {
                        assert!(encode(&other).is_ok());
                    }
                }

                #[test]
                fn arbitrary_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..2_000), version in any::<bool>()) {
                    if let (true, Some(first)) = (version, bytes.first_mut()) {
                        *first = tropa_proto::message::VERSION;
                    }
                    if let Ok(other) = decode::<$type>(&bytes) {
                        assert!(encode(&other).is_ok());
                    }
                }
            }
        }
    };
}

wire!(announcement, Announcement, arbitrary::announcement(), fixed::announcements());
wire!(question, Question, arbitrary::question(), fixed::questions());
wire!(answer, Answer, arbitrary::answer(), fixed::answers());
wire!(to_agent, ToAgent, arbitrary::to_agent(), fixed::to_agent());
wire!(from_agent, FromAgent, arbitrary::from_agent(), fixed::from_agent());
wire!(description, Description, arbitrary::description(), fixed::descriptions());

#[test]
fn every_list_that_ends_a_message_refuses_a_declared_length_of_2_to_the_40() {
    fn refused<M: Message + Debug>(start: &[u8], tail: &[u8]) {
        let result = decode::<M>(&[start, &HUGE, tail].concat());
        assert!(matches!(result, Err(CodecError::Decode { .. })), "{result:?}");
    }
    refused::<Answer>(&[1, 0], &[0]);
    refused::<FromAgent>(&[1, 5], &[0; 64]);
    let run = encode(&fixed::to_agent()[1].1).unwrap();
    let body = run.windows(3).position(|part| part == [15, b'{', b'"']).unwrap();
    refused::<ToAgent>(&run[..body], &run[body + 1..]);
    let announcement = encode(&fixed::announcements()[0].1).unwrap();
    let addresses = announcement.len() - (1 + (1 + 4 + 3) + (1 + 16 + 3));
    assert_eq!(announcement[addresses], 2);
    refused::<Announcement>(&announcement[..addresses], &announcement[addresses + 1..]);
}

#[test]
fn another_version_is_refused_before_the_body_is_looked_at() {
    let refused = decode::<Question>(&[2, 255, 255, 255]);
    assert!(matches!(refused, Err(CodecError::Version { found: 2, .. })), "{refused:?}");
    assert!(matches!(decode::<Question>(&[]), Err(CodecError::Empty(_))));
}

#[test]
fn the_largest_announcement_fits_its_cap() {
    let announcement = fixed::largest_announcement();
    let bytes = encode(&announcement).unwrap();
    assert!(bytes.len() <= Announcement::CAP, "{}", bytes.len());
    assert!(bytes.len() > 900, "not the largest: {}", bytes.len());
}
