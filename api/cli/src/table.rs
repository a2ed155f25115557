//! Tables for people: a header in capitals, columns two blanks apart, no lines. A thin face over comfy-table that cleans
//! every cell, because cells hold what boxes say.

use comfy_table::{CellAlignment, presets};

use super::human::one_line;

/// Longest cell; longer ones are cut.
const CELL_CHARS_MAX: usize = 72;

/// A table in the making.
#[derive(Debug)]
pub(crate) struct Table {
    inner: comfy_table::Table,
}

impl Table {
    /// A table with these columns; a header that starts with `>` is a column of numbers, set flush right.
    pub(crate) fn new(headers: &[&str]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_preset(presets::NOTHING);
        inner.set_header(headers.iter().map(|header| header.trim_start_matches('>')));
        for (index, header) in headers.iter().enumerate() {
            if let Some(column) = inner.column_mut(index) {
                column.set_padding((0, 2));
                if header.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { inner }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.inner.add_row(cells.iter().map(|cell| one_line(cell, CELL_CHARS_MAX)));
    }

    /// The text, a line feed after each line and no blanks at their ends.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for line in self.inner.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::new(&["NAME", ">CPU", "STATUS"]);
        table.row(["build".into(), "1.5 s".into(), "idle".into()]);
        table.row(["a-longer-name".into(), "0".into(), "paused".into()]);
        assert_eq!(
            table.render(),
            "NAME             CPU  STATUS\n\
             build          1.5 s  idle\n\
             a-longer-name      0  paused\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(&["A", "B"]).render(), "A  B\n");
    }

    #[test]
    fn cells_are_single_clean_lines() {
        let mut table = Table::new(&["A"]);
        table.row([format!("x\n\x1b[31m{}", "y".repeat(200))]);
        let text = table.render();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("x \\u{1b}[31m"));
        assert!(text.ends_with("…\n"));
    }
}
