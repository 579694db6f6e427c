//! The signals of Windows, from what `reg.exe query` prints; also of the Windows around a WSL2.
//!
//! Everything wanted lies in the registry, the SMBIOS table included, so one program that every Windows has is
//! enough and no system call is needed. Only the parsers are tested, on captured texts: no Windows has run them.

use std::collections::BTreeSet;

use tropa_proto::{
    bounded::Text,
    canonical,
    evidence::{Cpus, Facts, Hypervisor, HypervisorClass, Os, Reading},
};

use super::{
    command, cpus,
    files::Root,
    platform::{names_cloud, names_hypervisor, names_maker},
};

/// Where a registry value is: the arguments of `reg.exe`, and the name of the file in a declared tree.
struct Query {
    file: &'static str,
    arguments: &'static [&'static str],
}

// The 64-bit view: a 32-bit process sees another Cryptography key.
const CRYPTOGRAPHY: Query = Query {
    file: "cryptography",
    arguments: &["query", r"HKLM\SOFTWARE\Microsoft\Cryptography", "/v", "MachineGuid", "/reg:64"],
};
const BIOS: Query = Query { file: "bios", arguments: &["query", r"HKLM\HARDWARE\DESCRIPTION\System\BIOS"] };
const SMBIOS: Query = Query {
    file: "smbios",
    arguments: &["query", r"HKLM\SYSTEM\CurrentControlSet\Services\mssmbios\Data", "/v", "SMBiosData"],
};
const PROCESSOR: Query = Query {
    file: "processor",
    arguments: &[
        "query",
        r"HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor",
        "/s",
        "/v",
        "ProcessorNameString",
    ],
};

/// Reads everything but GPUs and lane.
#[must_use]
pub fn read(root: &Root) -> Facts {
    let bios = query(root, &BIOS);
    let processors = query(root, &PROCESSOR);
    let processors = processors.value().map_or("", String::as_str);
    let count = processors.lines().filter(|line| line.starts_with("HKEY_")).count();
    let model = value(processors, "ProcessorNameString").map_or(Reading::Absent, canonical::cpu_model);
    let (hypervisor, class) =
        bios.value().map_or((Hypervisor::Unknown, HypervisorClass::Unknown), |b| ground(b));
    Facts {
        hypervisor,
        hypervisor_class: class,
        machine_guid: host_guid(root),
        product_uuid: query(root, &SMBIOS).and_then(|text| match value(&text, "SMBiosData") {
            Some(data) => smbios_uuid(data).map_or(Reading::Absent, |uuid| canonical::product_uuid(&uuid)),
            None => Reading::Absent,
        }),
        cpu_model: model,
        cpus: Cpus {
            host: u16::try_from(count).unwrap_or(u16::MAX),
            allowed: all(count),
            numa_nodes: 1,
            ..Cpus::default()
        },
        memory: cpus::memory(root),
        ..Facts::empty(Os::Windows)
    }
}

/// Reads the MachineGuid of this Windows, or of the Windows around this WSL2: an install's id, cloned with it.
#[must_use]
pub fn host_guid(root: &Root) -> Reading<String> {
    query(root, &CRYPTOGRAPHY).and_then(|text| match value(&text, "MachineGuid") {
        Some(guid) => canonical::uuid(guid),
        None => Reading::Absent,
    })
}

fn query(root: &Root, query: &Query) -> Reading<String> {
    if root.is_declared() {
        return root.text(&format!("tropa/windows/{}", query.file));
    }
    let program = if cfg!(windows) {
        let system = std::env::var("SystemRoot").unwrap_or_else(|_| r"C:\Windows".to_owned());
        format!(r"{system}\System32\reg.exe")
    } else {
        "/mnt/c/Windows/System32/reg.exe".to_owned()
    };
    command::output(&program, query.arguments)
}

/// Finds a value in what `reg.exe query` prints: lines of name, type and data between four blanks.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(name)?;
        let (kind, data) = rest.strip_prefix("    ")?.split_once("    ")?;
        kind.starts_with("REG_").then(|| data.trim())
    })
}

/// The hypervisor bit is set on bare Windows with virtualisation-based security, so only names count. A cloud rents out
/// guests and whole machines under one name: which it is, is not known.
fn ground(bios: &str) -> (Hypervisor, HypervisorClass) {
    let read = |name| value(bios, name).unwrap_or_default().to_lowercase();
    let names = [read("SystemManufacturer"), read("SystemProductName")];
    let is_guest = |name: &String| names_hypervisor(name) || name.starts_with("virtual machine");
    if names.iter().any(is_guest) {
        (Hypervisor::Vm, HypervisorClass::Homelab)
    } else if names.iter().any(|name| names_cloud(name)) || !names_maker(&names[0]) {
        (Hypervisor::Unknown, HypervisorClass::Unknown)
    } else {
        (Hypervisor::None, HypervisorClass::Unknown)
    }
}

/// Finds the UUID of the table of type 1 in the raw SMBIOS data, written in hexadecimal.
fn smbios_uuid(hexadecimal: &str) -> Option<String> {
    let digits: Vec<u8> = hexadecimal
        .chars()
        .map(|c| c.to_digit(16))
        .collect::<Option<Vec<u32>>>()?
        .into_iter()
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    // Eight bytes say version and length; then tables, each with a header and a tail of texts.
    let mut rest = bytes.get(8..)?;
    while let [kind, length, ..] = rest {
        let length = usize::from(*length);
        if *kind == 1 {
            let id = rest.get(..length)?.get(8..24)?;
            let part = |places: [usize; 4]| {
                places.iter().map(|place| format!("{:02x}", id[*place])).collect::<String>()
            };
            let tail: String = id[8..].iter().map(|byte| format!("{byte:02x}")).collect();
            let middle = part([5, 4, 7, 6]);
            return Some(format!(
                "{}-{}-{}-{}-{}",
                part([3, 2, 1, 0]),
                &middle[..4],
                &middle[4..],
                &tail[..4],
                &tail[4..]
            ));
        }
        let texts = rest.get(length.max(4)..)?;
        let end = texts.windows(2).position(|pair| pair == [0, 0])?;
        rest = texts.get(end + 2..)?;
    }
    None
}

fn all(count: usize) -> Text<128> {
    let last = u16::try_from(count).unwrap_or(u16::MAX).checked_sub(1);
    let numbers: BTreeSet<u16> = last.map(|last| (0..=last).collect()).unwrap_or_default();
    Text::cut(&canonical::cpu_list_text(&numbers))
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    const GUID: &str = "\r\nHKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Cryptography\r\n    MachineGuid    REG_SZ    \
                        0F1E2D3C-aaaa-4bbb-8ccc-0123456789ab\r\n\r\n";

    fn bios(manufacturer: &str, product: &str) -> String {
        format!(
            "\r\nHKEY_LOCAL_MACHINE\\HARDWARE\\DESCRIPTION\\System\\BIOS\r\n    BIOSVendor    REG_SZ    X\r\n    \
             SystemManufacturer    REG_SZ    {manufacturer}\r\n    SystemProductName    REG_SZ    {product}\r\n"
        )
    }

    /// A header, a table of type 0 with a text, and one of type 1.
    fn smbios() -> String {
        let header = "0003030000000000".to_owned();
        let zero = "00050000aa41000000".replace("aa41000000", "aa410000");
        let one = "011b0100010203043c2d1e0f6655887799aabbccddeeff00060506";
        format!("{header}{zero}{one}0000")
    }

    #[test]
    fn a_windows_is_read_from_its_registry() {
        let processors = "\r\nHKEY_LOCAL_MACHINE\\HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0\r\n    \
                          ProcessorNameString    REG_SZ    Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz\r\n\r\n\
                          HKEY_LOCAL_MACHINE\\HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\1\r\n    \
                          ProcessorNameString    REG_SZ    Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz\r\n";
        let smbios = format!("    SMBiosData    REG_BINARY    {}\r\n", smbios().to_uppercase());
        let (_directory, root) = tree(&[
            ("tropa/windows/cryptography", GUID),
            ("tropa/windows/bios", &bios("Dell Inc.", "Precision 3660")),
            ("tropa/windows/smbios", &smbios),
            ("tropa/windows/processor", processors),
        ]);
        let facts = read(&root);
        assert_eq!(facts.machine_guid, Reading::Value("0f1e2d3c-aaaa-4bbb-8ccc-0123456789ab".into()));
        assert_eq!(facts.product_uuid, canonical::product_uuid("0f1e2d3c-5566-7788-99aa-bbccddeeff00"));
        assert!(facts.product_uuid.is_genuine());
        assert_eq!(facts.hypervisor, Hypervisor::None);
        assert_eq!(facts.cpu_model.value().map(|name| &**name), Some("Intel Core i7-8700K CPU"));
        assert_eq!((facts.cpus.host, &*facts.cpus.allowed), (2, "0-1"));
    }

    #[test]
    fn a_hypervisors_product_makes_a_guest_and_no_name_makes_nothing() {
        assert_eq!(ground(&bios("Microsoft Corporation", "Virtual Machine")).0, Hypervisor::Vm);
        assert_eq!(ground(&bios("VMware, Inc.", "VMware20,1")).0, Hypervisor::Vm);
        assert_eq!(ground(&bios("Microsoft Corporation", "Surface Pro 9")).0, Hypervisor::None);
        assert_eq!(ground(&bios("To Be Filled By O.E.M.", "")).0, Hypervisor::Unknown);
        assert_eq!(ground(&bios("System manufacturer", "System Product Name")).0, Hypervisor::Unknown);
        assert_eq!(ground(&bios("innotek GmbH", "VirtualBox")).0, Hypervisor::Vm);
        assert_eq!(
            ground(&bios("Amazon EC2", "g5.xlarge")).0,
            Hypervisor::Unknown,
            "a guest or a whole machine"
        );
        assert_eq!(ground("").0, Hypervisor::Unknown);
    }

    #[test]
    fn broken_registry_texts_are_absent_and_never_panic() {
        let whole = smbios();
        for end in 0..whole.len() {
            let _ = smbios_uuid(&whole[..end]);
        }
        assert_eq!(smbios_uuid("zz"), None);
        assert_eq!(smbios_uuid("é"), None);
        let (_directory, root) = tree(&[("tropa/windows/cryptography", "ERROR: Access is denied.\r\n")]);
        assert_eq!(host_guid(&root), Reading::Absent);
    }
}
