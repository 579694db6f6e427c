//! The table of fault modes: names, keys with their defaults, and where each applies.

/// Where a mode applies when no `path=` is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All eight endpoints.
    Any,
    /// Chat, generate and embed.
    Work,
    /// Chat and generate.
    Generation,
    Embed,
    Tags,
    Ps,
    /// The install itself, beside any other fault.
    Install,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) mode: Mode,
    pub(crate) name: &'static str,
    pub(crate) scope: Scope,
    /// Key and default; a default that is a number makes the key a number.
    pub(crate) keys: &'static [(&'static str, &'static str)],
}

macro_rules! modes {
    ($($mode:ident $name:literal $scope:ident [$($key:ident = $default:literal),*];)*) => {
        /// A way to fail, or to be legal but awkward; the table of the specification says what each does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mode {
            $(#[doc = concat!("`", $name, "`")] $mode,)*
        }

        pub(crate) const TABLE: &[Row] = &[$(Row {
            mode: Mode::$mode, name: $name, scope: Scope::$scope, keys: &[$((stringify!($key), $default)),*],
        },)*];
    };
}

modes! {
    QueueFull "queue_full" Work [];
    Missing "missing" Work [];
    Vanish "vanish" Install [after = "1"];
    DigestChanges "digest_changes" Install [after = "1"];
    DigestOnlyChanges "digest_only_changes" Install [after = "1"];
    CloudTag "cloud_tag" Install [];
    RemoteLine "remote_line" Generation [];
    LoadStall "load_stall" Work [ms = "1000"];
    LoadOom "load_oom" Work [];
    Oom "oom" Generation [after = "3"];
    Crash "crash" Work [];
    ErrorLine "error_line" Generation [after = "3"];
    EmbedCrash "embed_400_crash" Embed [];
    Poison "poison" Work [];
    EmptyError "empty_500" Work [];
    ErrorFirstLine "error_first_line" Generation [text = "llama runner process has terminated: exit status 2"];
    OptionError "option_500" Generation [];
    NoThinking "no_thinking" Generation [];
    NestedError "nested_400" Generation [];
    CutsPrompt "cuts_prompt" Generation [];
    NoDone "no_done" Generation [after = "3"];
    EmptyOk "empty_200" Generation [];
    Repeats "repeats" Generation [];
    Stall "stall" Generation [after = "3", ms = "600000"];
    StallFirst "stall_first" Work [ms = "600000"];
    Drip "drip" Generation [ms = "20"];
    Endless "endless" Generation [];
    Reset "reset" Work [after = "0"];
    CutChunk "cut_chunk" Generation [after = "3"];
    Restart "restart" Work [ms = "1000"];
    BadJson "bad_json" Generation [];
    BadUtf8 "bad_utf8" Generation [];
    HugeLine "huge_line" Generation [bytes = "9437184"];
    LoadReason "load_reason" Generation [];
    BadTool "bad_tool" Generation [];
    EmbedNan "embed_nan" Embed [];
    EmbedShort "embed_short" Embed [];
    EmbedDim "embed_dim" Embed [];
    Html "html" Any [];
    Redirect "redirect" Any [];
    PlainMissing "plain_404" Any [];
    Unauthorized "status_401" Work [];
    Forbidden "status_403" Any [];
    Split "split" Generation [bytes = "3"];
    SplitUtf8 "split_utf8" Generation [];
    OnePacket "one_packet" Generation [];
    NoLastNewline "no_last_newline" Generation [];
    Crlf "crlf" Generation [];
    BlankLines "blank_lines" Generation [];
    FinalText "final_text" Generation [];
    NoReason "no_reason" Generation [];
    AfterDone "after_done" Generation [];
    LoadSlow "load_slow" Work [ms = "1000"];
    OnlyThinking "only_thinking" Generation [];
    Slow "slow" Work [factor = "10"];
    Zombie "zombie" Generation [ms = "1000"];
    Foreign "foreign" Work [ms = "1000", num_ctx = "0"];
    PsWaits "ps_waits" Ps [ms = "60000"];
    TagsSlow "tags_slow" Tags [ms = "1000"];
    Skew "skew" Install [seconds = "-1700000000"];
    Version "version" Install [version = "0.12.5"];
}

impl Mode {
    /// The name in the grammar.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// All modes, in the order of the specification's table.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.mode)
    }

    pub(crate) fn row(self) -> &'static Row {
        // The table is written in the order of the enum, by one macro.
        &TABLE[self as usize]
    }

    pub(crate) fn applies_to(self, path: &str) -> bool {
        match self.row().scope {
            Scope::Any | Scope::Install => true,
            Scope::Work => matches!(path, "/api/chat" | "/api/generate" | "/api/embed"),
            Scope::Generation => matches!(path, "/api/chat" | "/api/generate"),
            Scope::Embed => path == "/api/embed",
            Scope::Tags => path == "/api/tags",
            Scope::Ps => path == "/api/ps",
        }
    }
}
