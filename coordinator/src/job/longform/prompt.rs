//! What the parts of a long text are asked. Only places, numbers and foci differ between the parts of one text, so
//! that an engine reads what they share once.
//!
//! The words are English, since models follow it best; the text itself comes in the language of the topic.

use std::fmt::Write as _;

use super::Content;

/// Stands before the first part where another is asked for.
pub(super) const FIRST_PART: &str = "\n\nPart 1 reads:\n\n";

/// Stands before the outline.
pub(super) const OUTLINE: &str = "\n\nThe outline:\n\n";

/// Stands before the end of the part before.
pub(super) const STORY_SO_FAR: &str = "\n\nThe story so far ends with these words:\n\n";

/// Stands before a part that the synthesis reads.
pub(super) fn part_reads(no: u32) -> String {
    format!("\n\nPart {no} reads:\n\n")
}

/// What the prompts of one text are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    pub(super) topic: &'a str,
    pub(super) content: Content,
    pub(super) parts: u32,
    /// Words of a part.
    pub(super) words: u32,
    /// What each part is about; empty where this kind of text has no list as long.
    pub(super) foci: &'a [&'a str],
    /// What the user has every model told.
    pub(super) system: Option<&'a str>,
    /// An outline says what each part is about.
    pub(super) outlined: bool,
}

impl Words<'_> {
    /// What the model is to be.
    pub(super) fn system(&self) -> String {
        let task = if self.parts == 1 {
            format!("You write {}.", self.content.noun())
        } else {
            format!(
                "You write {} together with others: it has {} parts, and you are asked for one at a time.",
                self.content.noun(),
                self.parts
            )
        };
        let before = self.system.map_or_else(String::new, |system| format!("{}\n\n", system.trim()));
        format!(
            "{before}{task} Write in the language of the topic. Answer with the text itself and nothing else: no remarks \
             about the task, no greeting, no offer to go on."
        )
    }

    /// What every prompt begins with: the topic, and which part is about what.
    pub(super) fn opening(&self) -> String {
        let mut text = format!("The topic:\n\n{}", self.topic);
        // The parts of a story are alike in nature and not a list of contents.
        if self.parts > 1 && !self.outlined && self.content != Content::Story {
            text.push_str("\n\nThe parts:\n");
            for (no, focus) in (1..).zip(self.foci) {
                let _ = write!(text, "\n{no}. {focus}");
            }
        }
        text
    }

    /// Asks for the outline.
    pub(super) fn ask_outline(&self) -> String {
        let mut text = format!(
            "The topic:\n\n{}\n\nWrite the outline of {} in {} parts of about {} words each, as a numbered list with one \
             line for each part: what it is about, in one sentence. Together the parts cover the topic, and none repeats \
             another.",
            self.topic,
            self.content.noun(),
            self.parts,
            self.words
        );
        if !self.foci.is_empty() {
            text.push_str(" Roughly:\n");
            for (no, focus) in (1..).zip(self.foci) {
                let _ = write!(text, "\n{no}. {focus}");
            }
        }
        text
    }

    /// Asks for a part.
    pub(super) fn ask_part(&self, no: u32) -> String {
        let about = format!("About {} words.", self.words);
        if self.parts == 1 {
            return match self.content {
                // A question may want no text at all, and gets its answer.
                Content::General => format!(
                    "\n\nIf the topic is a question, answer it as briefly as it allows; else write the text. At most about \
                     {} words.",
                    self.words
                ),
                Content::Research
                | Content::Discussion
                | Content::Story
                | Content::Explanation
                | Content::Analysis => format!("\n\nWrite it. {about}"),
            };
        }
        let focus = no.checked_sub(1).and_then(|at| self.foci.get(at as usize));
        let subject = match focus {
            _ if self.outlined => format!("what the outline says under {no}"),
            Some(focus) => (*focus).to_owned(),
            None => "what is still missing".to_owned(),
        };
        let head = format!("\n\nWrite part {no} of {}: {subject}. {about}", self.parts);
        match (self.content, no) {
            (Content::Story, no) if no == self.parts => format!("{head} Bring the story to its end."),
            (Content::Story, no) if no == 1 || self.outlined => format!("{head} Do not end the story yet."),
            (Content::Story, _) => {
                format!("{head} Go on from there; repeat nothing, and do not end the story yet.")
            }
            (_, no) if no == 1 || self.outlined => {
                format!("{head} {HEADING} Leave to the other parts what is theirs.")
            }
            (_, _) => {
                format!(
                    "{head} {HEADING} Repeat nothing of part 1, and leave to the other parts what is theirs."
                )
            }
        }
    }

    /// Asks for the synthesis.
    pub(super) fn ask_synthesis(&self) -> String {
        format!(
            "\n\nWrite the closing part that draws these parts together: what follows from them as a whole, where they \
             disagree, what stays open. Do not retell them one after the other. At most about {} words. {HEADING}",
            self.words
        )
    }
}

/// Asked of every part that is not a piece of a story.
const HEADING: &str = "Begin with a short heading, written `## Heading`.";
