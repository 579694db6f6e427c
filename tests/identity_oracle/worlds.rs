//! Random rows of few distinct values, so that collisions and contradictions are the rule.

use crate::identity::{
    AgentFacts, ContinuityRow, FusionRow, LanesRow, Pair, RawAnchors, RawChunk, RawGpu, RawPairFacts,
};

/// A small reproducible source of chance (SplitMix64).
#[derive(Debug)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        let place = self.below(of.len() as u64);
        of[usize::try_from(place).unwrap()].clone()
    }

    fn word(&mut self, percent: u64, of: &[&str]) -> Option<String> {
        self.percent(percent).then(|| self.one(of).to_owned())
    }

    fn some(&mut self, percent: u64, of: &[&str]) -> Vec<String> {
        of.iter().filter(|_| self.percent(percent)).map(|text| (*text).to_owned()).collect()
    }

    /// A row; each has its own share of evidence, so that sparse and crowded worlds both come.
    pub(super) fn fusion(&mut self) -> FusionRow {
        let names: Vec<String> =
            (0..2 + self.below(5)).map(|n| char::from(b'A' + n as u8).to_string()).collect();
        let (often, rare) = (20 + self.below(70), self.below(30));
        let agents = names.iter().map(|name| (name.clone(), self.agent(often, rare))).collect();
        let mut row = FusionRow { agents, ..FusionRow::default() };
        let measured = self.below(60);
        for (place, a) in names.iter().enumerate() {
            for b in &names[place + 1..] {
                if self.percent(60) {
                    let facts = self.pair(measured);
                    let (a, b) = if self.percent(50) { (a, b) } else { (b, a) };
                    row.pairs.push(Pair { a: a.clone(), b: b.clone(), facts });
                }
            }
        }
        row
    }

    fn agent(&mut self, often: u64, rare: u64) -> AgentFacts {
        let os = self.one(&["linux", "linux", "linux", "windows", "macos"]);
        let hv = self.word(85, &["none", "none", "root", "vm", "vm", "unknown"]);
        let vm = hv.as_deref() == Some("vm");
        let uuids = UUIDS;
        AgentFacts {
            os: os.to_owned(),
            hv_class: self.word(if vm { 70 } else { 0 }, &["homelab", "desktop", "cloud", "unknown"]),
            hv,
            agent_key: self.word(rare, &["k1", "k2"]),
            boot_id: if os == "windows" { None } else { self.word(often, &BOOTS) },
            boot_id_virtual: self.percent(12),
            epoch_ns: (os == "linux" && self.percent(often)).then(|| self.one(&EPOCHS)),
            time_namespace: self.percent(8),
            machine_id: self.word(often / 2, &MACHINE_IDS),
            product_uuid: self.word(often / 2, &uuids),
            platform_uuid: if os == "macos" { self.word(often, &BOOTS) } else { None },
            machine_guid: if os == "windows" { self.word(often, &GUIDS) } else { None },
            wsl_host_guid: if os == "linux" && vm { self.word(often / 2, &GUIDS) } else { None },
            hosts_vms: self.some(rare / 2, &uuids),
            ppin: self.some(rare / 2, &["02b0000000000a00", "02B0000000000A01", "0000000000000000"]),
            macs: self.some(rare / 2, &["a8:a1:59:00:00:01", "A8:A1:59:00:00:02"]),
            nvme: self.some(rare / 2, &["S5XXNF0R000001 ", "S5XXNF0R000002", "", "0000"]),
            cpu_model: self.word(often, &MODELS),
            allowed_cpus: None,
            gpus: self.gpus(rare / 2),
        }
    }

    fn gpus(&mut self, percent: u64) -> Vec<RawGpu> {
        let count = (0..3).filter(|_| self.percent(percent)).count();
        (0..count).map(|_| self.gpu()).collect()
    }

    fn gpu(&mut self) -> RawGpu {
        let wholes = ["GPU-00000000-0000-4000-8000-000000000001", "GPU-00000000-0000-4000-8000-000000000002"];
        let slices = ["MIG-00000000-0000-4000-8000-00000000000a", "MIG-00000000-0000-4000-8000-00000000000b"];
        let virtuals =
            ["GPU-00000000-0000-4000-8000-0000000000f1", "GPU-00000000-0000-4000-8000-0000000000f2"];
        let (kind, uuid, parent) = match self.below(4) {
            0 | 1 => ("full", self.one(&wholes), None),
            2 => ("mig", self.one(&slices), Some(self.one(&wholes).to_owned())),
            _ => ("vgpu", self.one(&virtuals), None),
        };
        RawGpu { uuid: Some(uuid.to_owned()), kind: kind.to_owned(), parent, uma: self.percent(20) }
    }

    fn pair(&mut self, measured: u64) -> RawPairFacts {
        let clock =
            self.percent(measured).then(|| self.one(&[(0.05, 0.4), (1.1, 0.4), (-3.0, 1.0), (1.3, 0.4)]));
        RawPairFacts {
            clock_offset_ms: clock.map(|clock| clock.0),
            rtt_ms: clock.map(|clock| clock.1),
            rendezvous: self.percent(measured / 6),
            sandwich: self.word(measured / 3, &["pass", "fail"]),
            beacon: self.word(measured / 5, &["pass", "fail"]),
            local_peer: self.percent(measured / 4),
            probe: self.word(measured / 3, &["positive", "negative"]),
            passive: self.word(measured / 4, &["positive", "negative"]),
            rule: self.word(measured / 4, &["same", "distinct"]),
        }
    }

    pub(super) fn lanes(&mut self) -> LanesRow {
        let chunk = |chance: &mut Self| RawChunk {
            machine: chance.one(&["M", "M", "N"]).to_owned(),
            gpus: (0..chance.below(3)).map(|_| chance.gpu()).collect(),
            cpu: chance.percent(50),
            numa_nodes: if chance.percent(50) { vec![] } else { vec![chance.one(&[0, 1])] },
        };
        LanesRow { a: chunk(self), b: chunk(self), ..LanesRow::default() }
    }

    pub(super) fn continuity(&mut self) -> ContinuityRow {
        let present = 20 + self.below(70);
        let anchors = |chance: &mut Self| {
            let mut values = |percent| chance.some(percent, &["v1", "v2", "v3"]);
            RawAnchors {
                ppin: values(present / 3),
                product_uuid: values(present / 2),
                platform_uuid: values(present / 3),
                gpus: values(present / 2),
                macs: values(present / 2),
                nvme: values(present / 2),
                machine_id: values(present / 2),
                machine_guid: values(present / 3),
                agent_key: values(present / 2),
                boot: Some(chance.one(&["b1", "b2"]).to_owned()),
            }
        };
        let (record, seen) = (anchors(self), anchors(self));
        ContinuityRow { record, seen, record_alive: self.percent(50), ..ContinuityRow::default() }
    }
}

const BOOTS: [&str; 3] = [
    "b0070000-0000-4000-8000-000000000001",
    "B0070000-0000-4000-8000-000000000002\n",
    "b0070000-0000-4000-8000-000000000003",
];
/// The second is the first within 2 µs, the fourth just not; the last is before 2020.
const EPOCHS: [i64; 5] = [
    1_790_001_000_000_000_000,
    1_790_001_000_000_002_000,
    1_790_002_000_000_000_000,
    1_790_002_000_000_002_001,
    1_000_000_000,
];
const MACHINE_IDS: [&str; 5] = [
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1",
    "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB2\n",
    "uninitialized",
    "b08dfa6083e7567a1921a715000001fb",
    "",
];
/// The second is the first in the other byte order; the last three say nothing.
const UUIDS: [&str; 6] = [
    "11223344-2222-3333-4444-555555555551",
    "44332211-2222-3333-4444-555555555551",
    "11223344-2222-3333-4444-555555555552",
    "00020003-0004-0005-0006-000700080009",
    "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    "Not Present",
];
const GUIDS: [&str; 3] = [
    "60000000-0000-4000-8000-000000000001",
    "{60000000-0000-4000-8000-000000000001}",
    "60000000-0000-4000-8000-000000000002",
];
const MODELS: [&str; 6] = [
    "AMD Ryzen 9 7950X",
    "AMD Ryzen(TM) 9  7950X @ 4.5GHz",
    "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz",
    "Common KVM processor",
    "Intel Xeon Processor (Skylake, IBRS)",
    "Apple M3",
];
