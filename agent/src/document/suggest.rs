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
    use super::nearest;

    #[test]
    fn a_slip_of_the_keyboard_is_recognised() {
        let keys = ["name", "address", "addresses", "uplinks"];
        assert_eq!(nearest("adress", keys), Some("address"));
        assert_eq!(nearest("nmae", keys), Some("name"));
        assert_eq!(nearest("uplink", keys), Some("uplinks"));
    }

    #[test]
    fn a_different_word_is_not_forced_onto_a_key() {
        assert_eq!(nearest("replicas", ["name", "address"]), None);
    }
}
