//! Columns from lines with tabs, as Docker's tables have them: at least 10 wide, 3 apart.

/// Narrowest column.
const MIN_WIDTH: usize = 10;
/// Space between columns.
const PADDING: usize = 3;

/// Aligns the tab-separated cells of all lines. The last cell of a line is not padded.
pub(crate) fn align(text: &str) -> String {
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().take(row.len() - 1).enumerate() {
            let width = (cell.chars().count() + PADDING).max(MIN_WIDTH);
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut out = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < row.len() {
                let width = widths.get(column).copied().unwrap_or(0);
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_dockers() {
        assert_eq!(
            align("ID\tNAME\tIMAGE\nabc\ta-very-long-name\tnginx\n"),
            "ID        NAME               IMAGE\nabc       a-very-long-name   nginx\n"
        );
    }

    #[test]
    fn characters_count_not_bytes() {
        assert_eq!(align("ä\tb\nxy\tb"), "ä         b\nxy        b\n");
    }

    proptest! {
        #[test]
        fn never_panics_and_keeps_lines(text: String) {
            prop_assert_eq!(align(&text).lines().count(), text.lines().count());
        }
    }
}
