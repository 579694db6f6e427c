//! What only root may read, taken over from root.
//!
//! A service runs as a user of its own. Before it starts, root may write what needs root (`tropa-agent evidence
//! --privileged`, `security.md` §8) into a file of the runtime directory. It counts only where the agent's own
//! reading was denied, only from a file that nobody but root can have written, and only for the same boot, so that
//! a file that stayed on a copied disk says nothing.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};
use tropa_proto::{
    bounded::List,
    evidence::{Facts, Reading},
    system::{self, Access},
};

use super::{files::Root, linux};

/// Bytes of the file: a board's id and the serials of at most 16 processors.
const MAX_FILE: u64 = 16 << 10;

/// The readings that need root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileged {
    boot_id: Reading<String>,
    product_uuid: Reading<String>,
    ppin: Reading<List<String, 16>>,
}

impl Privileged {
    /// Reads them; to be called as root.
    #[must_use]
    pub fn read(root: &Root) -> Self {
        let facts = linux::read(root);
        Self { boot_id: facts.boot_id, product_uuid: facts.product_uuid, ppin: facts.ppin }
    }

    /// Writes them for the service: 0640, whole or not at all. The group is the directory's where that is set-gid.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = system::files(0o640).write(true).create_new(true).open(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&beside, path)
    }

    /// Loads what root wrote; `None` where there is no such file.
    ///
    /// # Errors
    /// When it is not a regular file of root's, others may write to it, or it is not what [`Privileged::save`]
    /// writes.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        Self::load_of(path, 0)
    }

    fn load_of(path: &Path, owner: u32) -> io::Result<Option<Self>> {
        let file = match system::files(0).read(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let found = file.metadata()?;
        // Where nothing tells who wrote it, it is nobody's.
        let is_theirs = matches!(system::access(path, &found), Access::Bits { owner: of, mode } if of == owner && mode & 0o022 == 0);
        if !found.is_file() || !is_theirs {
            let why = format!("{} is not a file that only root can write", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Fills in what was denied, if this is the same boot of the same kernel.
    pub fn fill(&self, facts: &mut Facts) {
        if !facts.boot_id.is_genuine() || facts.boot_id != self.boot_id {
            return;
        }
        if facts.product_uuid == Reading::Denied {
            facts.product_uuid = self.product_uuid.clone();
        }
        if facts.ppin == Reading::Denied {
            facts.ppin = self.ppin.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tropa_proto::evidence::Os;

    use super::{super::files::tests::tree, *};

    const BOOT: &str = "6b29fc40-ca47-4067-b31d-00dd010662da";

    fn privileged() -> Privileged {
        let (_directory, root) = tree(&[
            ("proc/sys/kernel/random/boot_id", BOOT),
            ("sys/class/dmi/id/product_uuid", "11223344-5566-7788-99aa-bbccddeeff00\n"),
            ("sys/devices/system/cpu/cpu0/topology/ppin", "0x5a\n"),
        ]);
        Privileged::read(&root)
    }

    fn denied(boot: &str) -> Facts {
        Facts {
            boot_id: Reading::Value(boot.to_owned()),
            product_uuid: Reading::Denied,
            ppin: Reading::Denied,
            ..Facts::empty(Os::Linux)
        }
    }

    #[test]
    fn what_was_denied_is_filled_in_for_the_same_boot_only() {
        let mut facts = denied(BOOT);
        privileged().fill(&mut facts);
        assert!(facts.product_uuid.is_genuine() && facts.ppin.is_genuine());
        let mut other = denied("00000000-ca47-4067-b31d-00dd010662da");
        privileged().fill(&mut other);
        assert_eq!((other.product_uuid, other.ppin), (Reading::Denied, Reading::Denied));
        let mut own = Facts { product_uuid: Reading::Value("own".into()), ..denied(BOOT) };
        privileged().fill(&mut own);
        assert_eq!(own.product_uuid, Reading::Value("own".into()));
    }

    #[test]
    fn only_a_file_that_its_owner_alone_can_write_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("privileged.json");
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(Privileged::load_of(&path, own).unwrap(), None);
        privileged().save(&path).unwrap();
        assert_eq!(Privileged::load_of(&path, own).unwrap(), Some(privileged()));
        assert!(Privileged::load_of(&path, own + 1).is_err(), "somebody else's");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(Privileged::load_of(&path, own).is_err(), "the group may write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(Privileged::load_of(&path, own).is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Privileged::load_of(&link, own).is_err());
    }
}
