//! Lines laid out in columns.

use super::one_line;

/// How wide each column of some lines is, to lay out these and others.
pub(super) struct Widths<const N: usize>([usize; N]);

impl<const N: usize> Widths<N> {
    /// As wide as the longest cell.
    pub(super) fn of<'a>(lines: impl IntoIterator<Item = &'a [String; N]>) -> Self {
        let mut widths = [0; N];
        for line in lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = one_line(cell).chars().count().max(*width);
            }
        }
        Self(widths)
    }

    /// One line, without blanks at its end.
    pub(super) fn line(&self, cells: &[String; N]) -> String {
        let cells = cells.iter().zip(self.0).map(|(cell, width)| format!("{:<width$}", one_line(cell)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}
