//! What was typed of `tropa doctor`.

use clap::Args as ClapArgs;

/// `tropa doctor`.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct DoctorArgs {
    /// Look whether a job with this model would run [default: the one that a job would take]
    #[arg(short, long, value_name = "NAME", env = "TROPA_MODEL")]
    pub model: Option<String>,
    /// Tokens that its answers may have
    #[arg(long, value_name = "N", env = "TROPA_MAX_TOKENS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_tokens: Option<u32>,
    /// Context in tokens that it needs
    #[arg(long, value_name = "N", env = "TROPA_NUM_CTX", value_parser = clap::value_parser!(u32).range(256..=16_777_216))]
    pub num_ctx: Option<u32>,
}
