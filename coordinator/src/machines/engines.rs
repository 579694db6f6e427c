//! What installs tell of themselves that their operators should mend or know of (`security.md` §9).

use tropa_agent::ollama::{NOT_VULNERABLE, is_vulnerable};
use tropa_proto::{
    message::{EngineState, Inventory},
    roster::{Install, View},
};

use super::WarningRow;

/// One finding of each kind about the installs that are asked for, which names those that it concerns in the order of
/// the roster.
pub(crate) fn findings(view: &View, among: impl Fn(&Install) -> bool) -> Vec<WarningRow> {
    let vulnerable =
        |inventory: &Inventory| inventory.engine == EngineState::Up && is_vulnerable(&inventory.version);
    let cloud = |inventory: &Inventory| inventory.models.iter().any(|model| model.remote);
    let vulnerable = concerned(view, &among, vulnerable).map(|agents| WarningRow {
        code: "ollama.vulnerable",
        text: format!("Ollama on {} is older than {NOT_VULNERABLE} and has known holes", agents.join(", ")),
        agents,
        fix: "install a newer Ollama from https://ollama.com/download; until then let nobody but this machine reach \
              it: OLLAMA_HOST=127.0.0.1 ollama serve",
        information: false,
    });
    let cloud = concerned(view, &among, cloud).map(|agents| WarningRow {
        code: "ollama.cloud_model",
        text: format!(
            "Ollama on {} lists models that run in its cloud; prompts would leave the mesh, so tropa uses none of them",
            agents.join(", ")
        ),
        agents,
        fix: "nothing to do; `ollama list` shows them without a size, `ollama rm` removes them",
        information: true,
    });
    let ill = view.installs.iter().filter(|install| install.ill && among(install));
    let ill: Vec<String> = ill.map(|install| install.label.clone()).collect();
    let ill = (!ill.is_empty()).then(|| WarningRow {
        code: "lane.unhealthy",
        text: format!(
            "Ollama on {} failed with two chunks one after the other; it is asked for one token before it gets more",
            ill.join(", ")
        ),
        agents: ill,
        fix: "if it stays so, its log says why; start it anew: ollama serve",
        information: false,
    });
    ill.into_iter().chain(vulnerable).chain(cloud).collect()
}

/// The labels of the installs whose inventory is so; `None` where there are none.
fn concerned(
    view: &View,
    among: impl Fn(&Install) -> bool,
    is_so: impl Fn(&Inventory) -> bool,
) -> Option<Vec<String>> {
    let asked = view.installs.iter().filter(|install| among(install));
    let known = asked.filter(|install| install.inventory.as_deref().is_some_and(&is_so));
    let labels: Vec<String> = known.map(|install| install.label.clone()).collect();
    (!labels.is_empty()).then_some(labels)
}
