//! The mesh secret: there, kept from others, and not in the middle of a replacement that was forgotten.

use std::{net::SocketAddr, path::Path};

use tropa_proto::secret::{MeshSecret, SecretError};

use super::{
    Here,
    finding::{Finding, quoted},
};
use crate::words::with_source;

/// How long two salts may stand beside each other: `tropa mesh resalt` says a week at the latest.
const RESALTED_WITHIN_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// The secret that the settings name, or that is in its usual place.
pub(super) fn check(here: &Here) -> Vec<Finding> {
    let Some(path) = &here.chosen.secret_file else {
        return vec![alone(&here.chosen.peers)];
    };
    match MeshSecret::read(path) {
        Err(error) => vec![unusable(path, &error)],
        Ok(secret) if secret.former_salt().is_some() => vec![resalting(path, here.now_ms)],
        Ok(_) => vec![Finding::ok("mesh.secret", format!("{}, for this user only", path.display()))],
    }
}

/// Without a secret only the agents of this machine are met; whoever names others is mistaken.
fn alone(peers: &[String]) -> Finding {
    // What a name means is seen when it is dialled.
    let elsewhere = |peer: &&String| peer.parse::<SocketAddr>().is_ok_and(|peer| !peer.ip().is_loopback());
    match peers.iter().find(elsewhere) {
        None => Finding::ok("mesh.secret", "none, so this machine is a mesh of its own"),
        Some(peer) => {
            let what = format!("there is no mesh secret, and --peer names {peer}");
            let why = "agents of other machines speak to those only that have the secret of their mesh";
            Finding::fail("mesh.secret", what).because(why).fix(FETCH)
        }
    }
}

/// How the secret of a mesh comes to this machine, said here.
const FETCH: &str = "ssh THERE cat .config/tropa/mesh.secret | tropa mesh join";

fn unusable(path: &Path, error: &SecretError) -> Finding {
    let file = quoted(path);
    let fix = match error {
        SecretError::Exposed { .. } => format!("chmod 600 {file}"),
        SecretError::Foreign { user, .. } => format!("sudo chown {user} {file}"),
        SecretError::NotASecret | SecretError::NotAFile(_) => format!("mv {file} {file}.old && {FETCH}"),
        SecretError::Read { .. } => format!("ls -l {file}; or name another with --mesh-secret-file"),
        SecretError::Unknown(_)
        | SecretError::Exists(_)
        | SecretError::Write { .. }
        | SecretError::Random(_) => "keep it below the profile of this user: --mesh-secret-file".to_owned(),
    };
    let why = "no command runs until it is mended, so the mesh was not looked at";
    Finding::fail("mesh.secret", with_source(error)).because(why).fix(fix)
}

/// Two salts are right while agents are restarted one after the other, and later one too many.
fn resalting(path: &Path, now_ms: u64) -> Finding {
    let file = path.display();
    let changed = std::fs::metadata(path).and_then(|found| found.modified()).ok();
    let changed = changed.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let age_ms = changed.map_or(0, |at| u128::from(now_ms).saturating_sub(at.as_millis()));
    if age_ms < u128::from(RESALTED_WITHIN_MS) {
        let what = format!("{file}, for this user only; the id-salt is being replaced");
        return Finding::ok("mesh.secret", what);
    }
    let what = format!("{file} still has the former id-salt, after {} days", age_ms / (24 * 3_600 * 1_000));
    let why = "agents publish their hardware ids under both salts until the line is gone";
    let fix =
        format!("on every machine: sed -i '/^former-id-salt /d' {}, and restart its agent", quoted(path));
    Finding::warn("mesh.secret", what).because(why).fix(fix)
}
