//! The mesh secret: one file that makes several machines one mesh.
//!
//! The file is text, so that it can be copied by hand, and holds two values of 32 random bytes, each as 64
//! hexadecimal digits behind its label:
//!
//! ```text
//! tropa-mesh-secret-1 <64 digits>
//! id-salt <64 digits>
//! ```
//!
//! The *secret* is the door: a key derived from it is the prologue of every Noise handshake, so a peer with
//! another secret fails before it has seen a byte of ours. The *salt* keys the evidence tags and stays when the
//! secret changes (`security.md` §2, `identity.md` §4). Where the salt itself is replaced, a third line keeps the one
//! before (`former-id-salt <64 digits>`) until every agent has been restarted with the new one. Passphrases are
//! refused: whoever takes part in one handshake can test guesses off-line, and only 256 random bits make that useless.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{
    id::{hex, unhex},
    system::{self, Access},
};

/// The label in front of the secret; its number is the version of the file.
const SECRET_LABEL: &str = "tropa-mesh-secret-1";

/// The label in front of the salt.
const SALT_LABEL: &str = "id-salt";

/// The label in front of the salt before.
const FORMER_LABEL: &str = "former-id-salt";

/// What the prologue is derived for. Labels are never reused.
const PROLOGUE_LABEL: &[u8] = b"tropa/noise/1";

/// Bytes that a secret file may have: its three lines need 236, the rest is for white space.
const MAX_FILE: u64 = 4096;

/// What admits to one mesh. Shows nothing of itself, and overwrites itself when dropped.
#[derive(Clone)]
pub struct MeshSecret {
    secret: Zeroizing<[u8; 32]>,
    id_salt: Zeroizing<[u8; 32]>,
    former_salt: Option<Zeroizing<[u8; 32]>>,
}

/// Says why there is no mesh secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The text is something else.
    #[error(
        "this is no mesh secret: expected `{SECRET_LABEL}` and `{SALT_LABEL}`, each followed by 64 hexadecimal \
         digits, as `tropa mesh new` writes them; passphrases are refused because they can be guessed off-line"
    )]
    NotASecret,
    /// There is a file already; it is never overwritten.
    #[error("{} exists already and is kept", .0.display())]
    Exists(PathBuf),
    /// Others can read the file.
    #[error("{} can be read by others (mode {mode:04o}): run `chmod 600 {}`", .path.display(), .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else.
    #[error("{} belongs to user {owner}, not to this one: run `chown {user} {}`", .path.display(), .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who wants to read it.
        user: u32,
    },
    /// The system does not tell who can read the file, and it lies where that matters.
    #[error("nothing here tells who can read {}: keep it below the profile of the user that needs it", .0.display())]
    Unknown(PathBuf),
    /// The path names no regular file of a plausible size.
    #[error("{} is not a small regular file", .0.display())]
    NotAFile(PathBuf),
    /// Reading failed.
    #[error("reading {} failed", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed; nothing is left behind.
    #[error("writing {} failed", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system has no random bytes to give.
    #[error("getting random bytes failed")]
    Random(#[from] getrandom::Error),
}

impl MeshSecret {
    /// Makes the secret and the salt of a new mesh.
    ///
    /// # Errors
    /// When the operating system has no random bytes to give.
    pub fn generate() -> Result<Self, SecretError> {
        Ok(Self { secret: random()?, id_salt: random()?, former_salt: None })
    }

    /// Makes a new secret for the same mesh: the salt stays, so machines stay who they are.
    ///
    /// # Errors
    /// When the operating system has no random bytes to give.
    pub fn renewed(&self) -> Result<Self, SecretError> {
        Ok(Self { secret: random()?, ..self.clone() })
    }

    /// Makes a new salt for the same mesh, and keeps the present one as the former: agents that have this secret publish
    /// under both.
    ///
    /// # Errors
    /// When the operating system has no random bytes to give.
    pub fn resalted(&self) -> Result<Self, SecretError> {
        let former_salt = Some(self.id_salt.clone());
        Ok(Self { secret: self.secret.clone(), id_salt: random()?, former_salt })
    }

    /// Reads a secret from its text, for example from standard input; white space may stand anywhere between
    /// the words.
    ///
    /// # Errors
    /// [`SecretError::NotASecret`] for everything else, above all for passphrases.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let mut words = text.split_ascii_whitespace();
        let mut value = |label| {
            if words.next()? != label {
                return Some(Err(SecretError::NotASecret));
            }
            let bytes = words.next().and_then(unhex::<32>).map(Zeroizing::new);
            // Digits typed by hand until there are enough of them.
            let bytes = bytes.filter(|bytes| bytes.iter().any(|byte| *byte != bytes[0]));
            Some(bytes.ok_or(SecretError::NotASecret))
        };
        let [secret, id_salt] = [value(SECRET_LABEL), value(SALT_LABEL)];
        let (secret, id_salt) =
            (secret.ok_or(SecretError::NotASecret)??, id_salt.ok_or(SecretError::NotASecret)??);
        let former_salt = value(FORMER_LABEL).transpose()?;
        if words.next().is_some() || former_salt.as_ref() == Some(&id_salt) {
            return Err(SecretError::NotASecret);
        }
        Ok(Self { secret, id_salt, former_salt })
    }

    /// Gives the text of the file.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let [secret, salt] = [&self.secret, &self.id_salt].map(|bytes| Zeroizing::new(hex(&**bytes)));
        let mut text = Zeroizing::new(format!("{SECRET_LABEL} {}\n{SALT_LABEL} {}\n", *secret, *salt));
        if let Some(former) = &self.former_salt {
            let former = Zeroizing::new(hex(&**former));
            // Room for the line is made anew, so the old text is overwritten too.
            text = Zeroizing::new(format!("{}{FORMER_LABEL} {}\n", *text, *former));
        }
        text
    }

    /// Writes the secret to a new file with mode 0600, synced before it has its name; directories that are
    /// missing are made with mode 0700.
    ///
    /// # Errors
    /// [`SecretError::Exists`] where there is a file already, [`SecretError::Write`] otherwise.
    pub fn write_new(&self, path: &Path) -> Result<(), SecretError> {
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                SecretError::Exists(path.to_owned())
            } else {
                SecretError::Write { path: path.to_owned(), source }
            }
        };
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        system::directories(0o700).recursive(true).create(directory).map_err(failed)?;
        let unfinished = directory.join(format!(".mesh.secret.{:016x}.new", getrandom::u64()?));
        let mut options = system::files(0o600);
        let written = options.write(true).create_new(true).open(&unfinished).and_then(|mut file| {
            file.write_all(self.to_text().as_bytes())?;
            file.sync_all()?;
            // A link, unlike a rename, never replaces what is there.
            fs::hard_link(&unfinished, path)
        });
        let removed = fs::remove_file(&unfinished);
        written.map_err(failed)?;
        removed.and_then(|()| system::sync_directory(directory)).map_err(failed)
    }

    /// Reads the file, and refuses it where others than its owner could have read or written it.
    ///
    /// A file of root may be readable by its group (mode 0640), which is how a service is given one.
    ///
    /// # Errors
    /// Whatever is wrong with the file; the text says what to do.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::Read { path: path.to_owned(), source };
        // A link is the operator's choice, and how secrets reach some containers.
        let whole = fs::canonicalize(path).map_err(failed)?;
        let file = system::files(0).read(true).open(whole).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() > MAX_FILE {
            return Err(SecretError::NotAFile(path.to_owned()));
        }
        private(path, &metadata)?;
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text)
    }

    /// Gives the salt that keys the evidence tags of this mesh.
    #[must_use]
    pub fn id_salt(&self) -> &[u8; 32] {
        &self.id_salt
    }

    /// Gives the salt before, while evidence is published under it as well.
    #[must_use]
    pub fn former_salt(&self) -> Option<&[u8; 32]> {
        self.former_salt.as_deref()
    }

    /// Gives the prologue of the Noise handshakes of this mesh: HKDF-SHA256 of the secret for `tropa/noise/1`.
    #[must_use]
    pub fn prologue(&self) -> [u8; 32] {
        hkdf(&*self.secret, PROLOGUE_LABEL)
    }
}

/// Gives the prologue without a secret, which everybody knows; good on loopback only.
#[must_use]
pub fn public_prologue() -> [u8; 32] {
    Sha256::digest(b"tropa/noise/1 without a secret").into()
}

/// Names a mesh in eight hexadecimal digits, from its prologue, without saying anything about the secret.
#[must_use]
pub fn mesh_name(prologue: &[u8; 32]) -> String {
    hex(&Sha256::digest(prologue)[..4])
}

/// Derives one key of 32 bytes: RFC 5869 without a salt, first block.
fn hkdf(key: &[u8], label: &[u8]) -> [u8; 32] {
    let extracted = Zeroizing::new(keyed(&[0; 32], &[key]));
    keyed(&extracted, &[label, &[1]])
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac =
        <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn random() -> Result<Zeroizing<[u8; 32]>, getrandom::Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes)?;
    Ok(bytes)
}

impl fmt::Debug for MeshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshSecret")
    }
}

/// Refuses a file that others than its owner could have read or written.
fn private(path: &Path, found: &fs::Metadata) -> Result<(), SecretError> {
    let (owner, mode) = match system::access(path, found) {
        Access::Bits { owner, mode } => (owner, mode),
        Access::Profile => return Ok(()),
        Access::Unknown => return Err(SecretError::Unknown(path.to_owned())),
    };
    let user = system::user().unwrap_or(owner);
    let readable_by_group = if owner == 0 { 0o040 } else { 0 };
    if mode & 0o077 & !readable_by_group != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    if owner != user && owner != 0 {
        return Err(SecretError::Foreign { path: path.to_owned(), owner, user });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivation_is_that_of_rfc_5869() {
        // Test case 3 of its appendix: no salt, no label.
        let expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d";
        assert_eq!(hex(&hkdf(&[0x0b; 22], b"")), expected);
    }

    #[test]
    fn a_secret_survives_its_text_and_shows_nothing_else() {
        let secret = MeshSecret::generate().unwrap();
        let again = MeshSecret::parse(&secret.to_text().replace('\n', " \r\n ")).unwrap();
        assert_eq!((secret.prologue(), secret.id_salt()), (again.prologue(), again.id_salt()));
        assert_eq!(format!("{secret:?}"), "MeshSecret");
        assert_ne!(secret.prologue(), public_prologue());
        assert_ne!(secret.prologue(), *secret.secret);
    }

    #[test]
    fn a_renewed_secret_keeps_the_salt_only() {
        let old = MeshSecret::generate().unwrap();
        let new = old.renewed().unwrap();
        assert_eq!(old.id_salt(), new.id_salt());
        assert_ne!(old.prologue(), new.prologue());
    }

    #[test]
    fn a_new_salt_keeps_the_secret_and_the_salt_before() {
        let old = MeshSecret::generate().unwrap();
        let new = old.resalted().unwrap();
        assert_eq!((new.prologue(), new.former_salt()), (old.prologue(), Some(old.id_salt())));
        assert_ne!(new.id_salt(), old.id_salt());
        let again = MeshSecret::parse(&new.to_text()).unwrap();
        assert_eq!((again.id_salt(), again.former_salt()), (new.id_salt(), new.former_salt()));
        let without: String = new.to_text().lines().take(2).map(|line| format!("{line}\n")).collect();
        assert_eq!(MeshSecret::parse(&without).unwrap().former_salt(), None, "the line may be removed");
        let same = new.to_text().replace(&hex(old.id_salt()), &hex(new.id_salt()));
        assert!(MeshSecret::parse(&same).is_err(), "one salt twice");
        assert!(MeshSecret::parse(&format!("{} {FORMER_LABEL} 00", *old.to_text())).is_err());
    }

    #[test]
    fn passphrases_short_texts_and_halves_are_refused() {
        let text = MeshSecret::generate().unwrap().to_text();
        let half = text.lines().next().unwrap();
        let zeros = format!("{SECRET_LABEL} {} {SALT_LABEL} {}", "0".repeat(64), "1".repeat(64));
        for wrong in
            ["", "correct horse battery staple", "00", half, &format!("{} x", *text), &text[1..], &zeros]
        {
            assert!(matches!(MeshSecret::parse(wrong), Err(SecretError::NotASecret)), "{wrong:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_private_and_is_never_overwritten() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/mesh.secret");
        let secret = MeshSecret::generate().unwrap();
        secret.write_new(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(MeshSecret::read(&path).unwrap().prologue(), secret.prologue());
        let other = MeshSecret::generate().unwrap().write_new(&path);
        assert!(matches!(other, Err(SecretError::Exists(_))));
        assert_eq!(MeshSecret::read(&path).unwrap().prologue(), secret.prologue());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_helps() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.secret");
        MeshSecret::generate().unwrap().write_new(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refusal = MeshSecret::read(&path).unwrap_err();
        assert!(matches!(refusal, SecretError::Exposed { mode: 0o644, .. }), "{refusal:?}");
        assert!(refusal.to_string().contains(&format!("chmod 600 {}", path.display())), "{refusal}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(MeshSecret::read(&path).is_err(), "a group that may write is refused for root too");
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_and_a_large_file_are_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(MeshSecret::read(directory.path()), Err(SecretError::NotAFile(_))));
        let path = directory.path().join("large");
        fs::write(&path, vec![b'a'; 5000]).unwrap();
        assert!(matches!(MeshSecret::read(&path), Err(SecretError::NotAFile(_))));
    }
}
