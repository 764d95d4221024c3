//! Suggests the most similar valid name for a wrong one.

/// Returns the candidate with the smallest edit distance to `wrong`, if it is similar enough.
pub(crate) fn nearest<'a>(
    wrong: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wrong = wrong.to_ascii_lowercase().replace('-', "_");
    let (distance, name) = candidates
        .into_iter()
        .map(|name| (distance(&wrong, name), name))
        .min()?;
    // A third of the letters may be wrong; beyond that it is another word.
    (distance <= (wrong.len().max(name.len()) / 3).max(2)).then_some(name)
}

/// Returns Levenshtein's distance in bytes: insertions, removals and replacements.
fn distance(left: &str, right: &str) -> usize {
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for (row, a) in left.bytes().enumerate() {
        let mut diagonal = row;
        let mut beside = row + 1;
        let mut current = vec![beside];
        for (b, above) in right.bytes().zip(previous.iter().skip(1)) {
            beside = (diagonal + usize::from(a != b))
                .min(above + 1)
                .min(beside + 1);
            diagonal = *above;
            current.push(beside);
        }
        previous = current;
    }
    previous.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_textbook() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn a_typo_finds_its_name_and_another_word_finds_none() {
        let names = ["data_dir", "tick_ms", "peers"];
        assert_eq!(nearest("data-dir", names), Some("data_dir"));
        assert_eq!(nearest("datadir", names), Some("data_dir"));
        assert_eq!(nearest("peesr", names), Some("peers"));
        assert_eq!(nearest("replication_factor", names), None);
    }
}
