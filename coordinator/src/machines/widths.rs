//! What earlier jobs have found of the width of installs, beside what operators declared.

use tropa_proto::{message::MAX_MEASURED_WIDTH, roster::View};

use super::{Report, WarningRow};
use crate::{schedule::Width, speeds::Speeds};

/// Why the width of an install is what it is.
const DECLARED: &str = "declared";
const MEASURED: &str = "measured";
const NOT_MEASURED: &str = "not measured";

/// What a measured one holds for.
const UNTIL_RESTARTED: &str = "until Ollama is restarted";

impl Report {
    /// Adds the widths that jobs of this user have measured. An install that lets requests wait for each other gets the
    /// finding `lane.width`: more slots may pay, and a job measures whether they do.
    pub fn add_widths(&mut self, view: &View, speeds: &Speeds) {
        let mut waiting = Vec::new();
        for install in &view.installs {
            let lane = install.lane.to_string();
            let models = install.inventory.iter().flat_map(|inventory| inventory.models.iter());
            let known = models.filter_map(|model| speeds.get(install.agent, &lane, model.fingerprint));
            let found: Vec<Width> = known.filter_map(|speed| speed.width_at(install.engine)).collect();
            let widest = found.iter().map(|width| width.at_once).max();
            let (width, from, until) = match (install.width, widest) {
                (0, Some(widest)) => (widest.clamp(1, MAX_MEASURED_WIDTH), MEASURED, UNTIL_RESTARTED),
                (0, None) => (1, NOT_MEASURED, ""),
                (declared, _) => (declared, DECLARED, ""),
            };
            let id = install.agent.short();
            let rows = self.machines.iter_mut().flat_map(|machine| machine.agents.iter_mut());
            for row in rows.filter(|row| row.id == id) {
                (row.width, row.width_from, row.width_until) = (width, from, until);
            }
            if install.width == 0 && !found.is_empty() && found.iter().all(|width| width.serialises) {
                waiting.push(install.label.clone());
            }
        }
        self.warnings.extend(waiting.into_iter().map(|label| WarningRow {
            code: "lane.width",
            text: format!("Ollama on {label} works on one request at a time and lets others wait"),
            agents: vec![label],
            fix: "to have tropa measure whether more at once pays, start it as: OLLAMA_NUM_PARALLEL=4 ollama serve \
                  (it takes the memory of four contexts)",
            information: true,
        }));
    }
}
