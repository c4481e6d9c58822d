//! A summary as text.

use super::summary::{Layer, LayerKind, Summary};
use std::fmt::Write;

/// Headings, and whether a column's entries are numbers, which stand at its right edge.
const COLUMNS: [(&str, bool); 8] = [
    ("layer", false),
    ("kind", false),
    ("output", true),
    ("kernel", true),
    ("stride", true),
    ("params", true),
    ("MACs", true),
    ("field / jump", true),
];

/// A line of the table: a layer, with the batch norm and ReLU that follow it.
struct Row<'a> {
    layer: &'a Layer,
    kind: String,
    param_count: u64,
}

impl Summary {
    /// The summary as an aligned table with totals, for a terminal.
    ///
    /// A convolution's batch norm and a ReLU stand in the line of the layer before them (`conv+bn+relu`), their
    /// parameters included. Outputs are channels × height × width; a dilated kernel is written `3×3 d2`; the
    /// receptive field and the jump are in input pixels.
    pub fn to_table(&self) -> String {
        let mut lines = vec![COLUMNS.map(|(heading, _)| heading.to_owned())];
        lines.extend(self.rows().iter().map(Row::cells));
        let mut widths = [0; COLUMNS.len()];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let rule = "─".repeat(widths.iter().sum::<usize>() + 2 * (COLUMNS.len() - 1));
        let mut text = String::new();
        for (number, line) in lines.iter().enumerate() {
            text.push_str(&aligned(line, &widths));
            if number == 0 || number + 1 == lines.len() {
                text.push_str(&rule);
                text.push('\n');
            }
        }
        text.push_str(&self.totals());
        text
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<Row<'_>> = Vec::new();
        for layer in &self.layers {
            let after_conv = rows.last().is_some_and(|row| row.layer.kind == LayerKind::Conv);
            let suffix = match layer.kind {
                LayerKind::BatchNorm if after_conv => "+bn",
                LayerKind::Relu => "+relu",
                _ => "",
            };
            match rows.last_mut() {
                Some(row) if !suffix.is_empty() => {
                    row.kind.push_str(suffix);
                    row.param_count += layer.param_count;
                }
                _ => rows.push(Row { layer, kind: layer.kind.to_string(), param_count: layer.param_count }),
            }
        }
        rows
    }

    fn totals(&self) -> String {
        let [height, width] = self.img_size;
        let channels = self.layers.first().map_or(0, |layer| layer.input[0]);
        format!(
            "{} at {}: {} parameters, {} MACs, {} activations\n",
            self.arch,
            shape([channels, height, width]),
            quantity(self.param_count),
            quantity(self.macs),
            quantity(self.activations)
        )
    }
}

impl Row<'_> {
    fn cells(&self) -> [String; COLUMNS.len()] {
        let Layer { kernel, stride, macs, .. } = self.layer;
        let windowed = *kernel != [1, 1] || *stride != [1, 1] || self.layer.kind == LayerKind::Conv;
        let count = |value: u64| if value == 0 { String::new() } else { quantity(value) };
        [
            self.layer.name.clone(),
            self.kind.clone(),
            shape(self.layer.output),
            if windowed { dilated(*kernel, self.layer.dilation) } else { String::new() },
            if windowed { pair(*stride) } else { String::new() },
            count(self.param_count),
            count(*macs),
            format!("{} / {}", self.layer.receptive_field, self.layer.jump),
        ]
    }
}

fn aligned(cells: &[String; COLUMNS.len()], widths: &[usize; COLUMNS.len()]) -> String {
    let mut line = String::new();
    for ((cell, &width), (_, number)) in cells.iter().zip(widths).zip(COLUMNS) {
        // Writing to a string cannot fail.
        let _ = if number { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

fn pair([height, width]: [usize; 2]) -> String {
    format!("{height}×{width}")
}

/// A kernel, and its dilation where it has one.
fn dilated(kernel: [usize; 2], dilation: [usize; 2]) -> String {
    match dilation {
        [1, 1] => pair(kernel),
        [step, _] => format!("{} d{step}", pair(kernel)),
    }
}

/// `[C, H, W]` as `C×H×W`.
pub(super) fn shape([channels, height, width]: [usize; 3]) -> String {
    format!("{channels}×{height}×{width}")
}

/// A count with four digits and a unit: `9408`, `36.86 k`, `1.814 G`.
pub(super) fn quantity(count: u64) -> String {
    if count < 10_000 {
        return count.to_string();
    }
    let (mut value, mut unit) = (count as f64 / 1e3, "k");
    for larger in ["M", "G", "T", "P", "E"] {
        // Four digits would round up to the next unit.
        if value < 999.95 {
            break;
        }
        (value, unit) = (value / 1e3, larger);
    }
    let decimals = if value < 9.9995 {
        3
    } else if value < 99.995 {
        2
    } else {
        1
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Arch, preset_names};

    #[test]
    fn quantities_have_four_digits_and_a_unit() {
        for (count, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.00 k"),
            (999_949, "999.9 k"),
            (999_950, "1.000 M"),
            (25_557_032, "25.56 M"),
            (1_814_073_344, "1.814 G"),
            (u64::MAX, "18.45 E"),
        ] {
            assert_eq!(quantity(count), text);
        }
    }

    #[test]
    fn tables_fit_a_terminal_and_align() {
        for name in preset_names() {
            let arch = Arch::preset(name).unwrap();
            let table = arch.summary(arch.img_size).unwrap().to_table();
            let longest = table.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= 110, "{name}: {longest} columns");
            let rules: Vec<_> = table.lines().filter(|line| line.starts_with('─')).collect();
            assert_eq!(rules.len(), 2);
            // The last column is flush right, so every line of the body is as long as the rule.
            let body = table.lines().take_while(|line| !line.contains(" at "));
            assert!(body.map(|line| line.chars().count()).all(|n| n == rules[0].chars().count()), "{name}");
        }
    }

    #[test]
    fn a_line_holds_a_convolution_with_its_norm_and_relu() {
        let table = Arch::preset("resnet18").unwrap().summary([224, 224]).unwrap().to_table();
        let line = table.lines().nth(2).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words,
            ["conv1", "conv+bn+relu", "64×112×112", "7×7", "2×2", "9536", "118.0", "M", "7", "/", "2"]
        );
        assert!(
            table.ends_with("resnet18 at 3×224×224: 11.69 M parameters, 1.814 G MACs, 2.485 M activations\n")
        );
        assert!(!table.contains("layer1.0.bn1"));
    }
}
