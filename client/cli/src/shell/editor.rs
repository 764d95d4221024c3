//! The line editor: history file, completion, hints from history.

use std::fs;
use std::path::{Path, PathBuf};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::{Hinter, HistoryHinter};
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Helper};

/// The number of lines that the history keeps.
const HISTORY_LINES: usize = 2_000;

/// A line editor with a history. The history omits lines that start with a blank, so that a user can keep secrets out of it.
pub(super) struct Editor {
    editor: rustyline::Editor<Words, DefaultHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    /// Makes an editor with the history of earlier shells.
    pub(super) fn new() -> Result<Self, ReadlineError> {
        let config = Config::builder()
            .max_history_size(HISTORY_LINES)?
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .auto_add_history(true)
            .build();
        let mut editor = rustyline::Editor::with_config(config)?;
        editor.set_helper(Some(Words {
            hinter: HistoryHinter::new(),
        }));
        let history = history_path();
        if let Some(path) = &history {
            // The first time the file does not exist.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    /// Reads the next line.
    pub(super) fn read(&mut self, prompt: &str) -> Result<String, ReadlineError> {
        self.editor.readline(prompt)
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        let Some(path) = &self.history else { return };
        if path
            .parent()
            .map(fs::create_dir_all)
            .is_some_and(|made| made.is_err())
        {
            return;
        }
        // Losing the history is harmless, so leaving the shell reports no error.
        let _ = self.editor.append_history(path);
    }
}

/// Returns the path of the history: `$SHARDKV_HISTORY` (empty: no history), or else a file in the state directory of the XDG
/// base directories.
fn history_path() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = std::env::var_os("SHARDKV_HISTORY") {
        return (!path.is_empty()).then(|| path.into());
    }
    let state = variable("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".local/state")))?;
    Some(state.join("shardkv/history"))
}

/// Completes commands and their arguments, and suggests earlier lines.
struct Words {
    hinter: HistoryHinter,
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(complete(line.get(..position).unwrap_or(line)))
    }
}

/// Returns the position of the word to complete, and its possible completions.
fn complete(before: &str) -> (usize, Vec<String>) {
    let start = before
        .rfind(char::is_whitespace)
        .map_or(0, |blank| blank + 1);
    let word = before.get(start..).unwrap_or_default();
    let candidates = match before
        .get(..start)
        .and_then(|words| words.split_whitespace().next())
    {
        None => super::command_names(),
        Some(first) => super::argument_names(first),
    };
    let mut matching: Vec<String> = candidates
        .into_iter()
        .filter(|name| name.starts_with(word))
        .collect();
    if let [only] = matching.as_mut_slice() {
        only.push(' ');
    }
    (start, matching)
}

impl Hinter for Words {
    type Hint = String;

    fn hint(&self, line: &str, position: usize, context: &Context<'_>) -> Option<String> {
        self.hinter.hint(line, position, context)
    }
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_of_commands_and_arguments() {
        assert_eq!(complete("ap"), (0, vec!["append ".into()]));
        let (start, names) = complete("");
        assert!(start == 0 && names.len() > 10);
        assert_eq!(
            complete("cas key --expect-f"),
            (8, vec!["--expect-file ".into()])
        );
        assert_eq!(complete("output t"), (7, vec!["table ".into()]));
        assert_eq!(complete("help sta"), (5, vec!["status ".into()]));
        assert_eq!(complete("zzz").1, Vec::<String>::new());
    }
}
