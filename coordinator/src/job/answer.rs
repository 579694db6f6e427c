//! How a question to a model ended, for the texts that are made of several answers.

/// How a node of the graph ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a text.
    Done {
        /// The text.
        text: String,
        /// It reached the limit of tokens before it was over.
        cut: bool,
    },
    /// Without, for good.
    Failed {
        /// The class of the failure.
        class: String,
        /// What to tell the user.
        message: String,
    },
    /// Not yet.
    Open,
}

impl Answer {
    /// The text; empty where there is none.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Done { text, .. } => text,
            Self::Failed { .. } | Self::Open => "",
        }
    }
}
