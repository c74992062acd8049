//! "Did you mean …?"

/// The candidate that looks most like `word`, if any looks like it at all: at most one edit in
/// three letters, swaps of neighbours counting as one.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// What is said of a service or a task that is not there; `weir services` and `weir tasks` are where
/// one looks for its name.
pub fn missing<'c>(kind: &str, name: &str, known: impl IntoIterator<Item = &'c str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("no {kind} \"{name}\"; did you mean \"{near}\"?"),
        None => format!("no {kind} \"{name}\"; weir {kind}s lists them all"),
    }
}

/// Optimal string alignment distance.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Only the first row and column matter at first: so many insertions or deletions.
    let mut rows: Vec<Vec<usize>> = (0..=a.len()).map(|i| (i..=i + b.len()).collect()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            rows[i][j] = substitution.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::{missing, nearest};

    #[test]
    fn a_slip_of_the_keyboard_is_recognised() {
        let keys = ["name", "address", "addresses", "uplinks"];
        assert_eq!(nearest("adress", keys), Some("address"));
        assert_eq!(nearest("nmae", keys), Some("name"));
        assert_eq!(nearest("uplink", keys), Some("uplinks"));
    }

    #[test]
    fn what_is_not_there_is_named_with_what_was_meant_or_where_to_look() {
        assert_eq!(
            missing("task", "wbe.1", ["web.1"]),
            "no task \"wbe.1\"; did you mean \"web.1\"?"
        );
        let said = missing("service", "shop", ["web"]);
        assert_eq!(said, "no service \"shop\"; weir services lists them all");
    }

    #[test]
    fn a_different_word_is_not_forced_onto_a_key() {
        assert_eq!(nearest("replicas", ["name", "address"]), None);
    }
}
