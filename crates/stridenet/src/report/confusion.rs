//! The section on confusions: heat map, most confused pairs, recall and precision of each class.

use super::Report;
use super::layers::put_meter;
use super::markup::{Escaped, grouped, percent, percent_text, put};

/// Up to here the heat map shows its counts.
const COUNTED: usize = 20;
/// Up to here there is a heat map.
const MAPPED: usize = 40;
/// How many pairs are listed: beside a heat map, and without one.
const PAIRS: [usize; 2] = [8, 20];
/// How many of the weakest classes are listed when there is no heat map.
const WEAKEST: usize = 10;
/// Steps of the colour scale, as in `page.css`.
const LEVELS: f64 = 8.0;

/// The counts with their sums.
struct Matrix<'a> {
    report: &'a Report,
    counts: &'a [Vec<u64>],
    classes: usize,
    /// Images of each class.
    truths: Vec<u64>,
    /// How often each class was predicted.
    predicted: Vec<u64>,
}

/// Two classes, one taken for the other.
struct Pair {
    truth: usize,
    predicted: usize,
    count: u64,
}

/// Writes the section's content.
pub(super) fn put_confusion(html: &mut String, report: &Report, counts: &[Vec<u64>]) {
    let matrix = Matrix::new(report, counts);
    if matrix.truths.iter().all(|count| *count == 0) {
        html.push_str("<p class=\"note\">No image was evaluated.</p>\n");
        return;
    }
    let mapped = matrix.classes <= MAPPED;
    if mapped {
        matrix.put_map(html);
    }
    let mut pairs = matrix.pairs();
    pairs.truncate(PAIRS[usize::from(!mapped)]);
    matrix.put_pairs(html, &pairs);
    let all: Vec<usize> = (0..matrix.classes).collect();
    if !mapped {
        let mut weakest: Vec<usize> = all.iter().copied().filter(|class| matrix.truths[*class] > 0).collect();
        let recall = |class: &usize| matrix.recall(*class).unwrap_or(0.0);
        weakest.sort_by(|a, b| recall(a).total_cmp(&recall(b)));
        weakest.truncate(WEAKEST);
        html.push_str("<h3>Classes with the lowest recall</h3>\n");
        matrix.put_classes(html, &weakest, "Classes with the lowest recall");
    }
    put!(html, "<details><summary>All classes ({})</summary>\n", matrix.classes);
    matrix.put_classes(html, &all, "All classes");
    html.push_str("</details>\n");
}

impl<'a> Matrix<'a> {
    fn new(report: &'a Report, counts: &'a [Vec<u64>]) -> Self {
        let widest = counts.iter().map(Vec::len).max().unwrap_or(0);
        let classes = report.labels.len().max(counts.len()).max(widest);
        let (mut truths, mut predicted) = (vec![0u64; classes], vec![0u64; classes]);
        for (sum, row) in truths.iter_mut().zip(counts) {
            for (column, count) in predicted.iter_mut().zip(row) {
                *sum = sum.saturating_add(*count);
                *column = column.saturating_add(*count);
            }
        }
        Matrix { report, counts, classes, truths, predicted }
    }

    fn count(&self, truth: usize, predicted: usize) -> u64 {
        self.counts.get(truth).and_then(|row| row.get(predicted)).copied().unwrap_or(0)
    }

    /// The share of a class's images that were recognised, in percent.
    fn recall(&self, class: usize) -> Option<f64> {
        percent(self.count(class, class), self.truths[class])
    }

    /// The share of a class's predictions that were right, in percent.
    fn precision(&self, class: usize) -> Option<f64> {
        percent(self.count(class, class), self.predicted[class])
    }

    /// All confusions that happened, most frequent first.
    fn pairs(&self) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for (truth, row) in self.counts.iter().enumerate() {
            for (predicted, &count) in row.iter().enumerate() {
                if count > 0 && truth != predicted {
                    pairs.push(Pair { truth, predicted, count });
                }
            }
        }
        pairs.sort_by_key(|pair| (std::cmp::Reverse(pair.count), pair.truth, pair.predicted));
        pairs
    }

    fn put_map(&self, html: &mut String) {
        let counted = self.classes <= COUNTED;
        html.push_str(
            "<p class=\"note\">A row is a true class, a column a predicted one. \
             <span class=\"key r6\">Blue</span> on the diagonal is right, <span class=\"key w4\">orange</span> is wrong; \
             the shade is the share of the row, on a square-root scale so that rare mistakes show.</p>\n",
        );
        put!(
            html,
            "<div class=\"scroll\" role=\"region\" aria-label=\"Confusion matrix\" tabindex=\"0\"><table class=\"matrix{}\">\n\
             <caption class=\"unseen\">Confusion matrix: rows are true classes, columns predicted classes</caption>\n\
             <thead><tr><td class=\"corner\"></td>",
            if counted { "" } else { " dense" }
        );
        for class in 0..self.classes {
            let label = self.report.label(class);
            put!(html, "<th scope=\"col\"><span title=\"{0}\">{0}</span></th>", Escaped(&label));
        }
        if counted {
            html.push_str("<th scope=\"col\" class=\"edge\"><span>recall</span></th>");
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for truth in 0..self.classes {
            let label = self.report.label(truth);
            put!(html, "<tr><th scope=\"row\" title=\"{0}\">{0}</th>", Escaped(&label));
            for predicted in 0..self.classes {
                self.put_cell(html, truth, predicted, counted);
            }
            if counted {
                put!(html, "<td class=\"edge\">{}</td>", percent_text(self.recall(truth)));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody>\n");
        if counted {
            html.push_str("<tfoot><tr><th scope=\"row\">precision</th>");
            for class in 0..self.classes {
                put!(html, "<td>{}</td>", percent_text(self.precision(class)));
            }
            html.push_str("<td class=\"edge\"></td></tr></tfoot>\n");
        }
        html.push_str("</table></div>\n");
    }

    fn put_cell(&self, html: &mut String, truth: usize, predicted: usize, counted: bool) {
        let count = self.count(truth, predicted);
        let share = percent(count, self.truths[truth]);
        let level = ((share.unwrap_or(0.0) / 100.0).sqrt() * LEVELS).ceil();
        let hue = if truth == predicted { 'r' } else { 'w' };
        put!(html, "<td class=\"{hue}{level}\"");
        // With the counts in sight, a hint on every zero would only be weight.
        if count > 0 || !counted {
            let [truth, predicted] = [truth, predicted].map(|class| self.report.label(class));
            let share = percent_text(share);
            put!(html, " title=\"{} → {}: {count} ({share})\"", Escaped(&truth), Escaped(&predicted));
        }
        put!(html, ">{count}</td>");
    }

    fn put_pairs(&self, html: &mut String, pairs: &[Pair]) {
        html.push_str("<h3>Most confused pairs</h3>\n");
        if pairs.is_empty() {
            html.push_str("<p class=\"note\">None: every image was recognised.</p>\n");
            return;
        }
        html.push_str(
            "<div class=\"scroll\" role=\"region\" aria-label=\"Most confused pairs\" tabindex=\"0\"><table>\n<thead><tr>\
             <th scope=\"col\">True class</th><th scope=\"col\">Taken for</th><th scope=\"col\" class=\"n\">Images</th>\
             <th scope=\"col\">Share of the true class</th></tr></thead>\n<tbody>\n",
        );
        for pair in pairs {
            let [truth, predicted] = [pair.truth, pair.predicted].map(|class| self.report.label(class));
            put!(html, "<tr><td>{}</td><td>{}</td>", Escaped(&truth), Escaped(&predicted));
            put!(html, "<td class=\"n\">{}</td>", grouped(pair.count));
            put_share(html, "wrong", percent(pair.count, self.truths[pair.truth]));
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>\n");
    }

    fn put_classes(&self, html: &mut String, classes: &[usize], name: &str) {
        put!(
            html,
            "<div class=\"scroll tall\" role=\"region\" aria-label=\"{name}\" tabindex=\"0\"><table>\n<thead><tr>\
             <th scope=\"col\">Class</th><th scope=\"col\" class=\"n\">Images</th><th scope=\"col\">Recall</th>\
             <th scope=\"col\">Precision</th><th scope=\"col\">Most often taken for</th></tr></thead>\n<tbody>\n"
        );
        for &class in classes {
            put!(html, "<tr><th scope=\"row\">{}</th>", Escaped(&self.report.label(class)));
            put!(html, "<td class=\"n\">{}</td>", grouped(self.truths[class]));
            put_share(html, "", self.recall(class));
            put_share(html, "", self.precision(class));
            let row = self.counts.get(class).map_or(&[][..], Vec::as_slice);
            let mistakes = row.iter().enumerate().filter(|(other, count)| *other != class && **count > 0);
            // The first of equals, as in the list of pairs.
            match mistakes.rev().max_by_key(|(_, count)| **count) {
                Some((other, count)) => {
                    put!(
                        html,
                        "<td>{} ({})</td></tr>\n",
                        Escaped(&self.report.label(other)),
                        grouped(*count)
                    );
                }
                None => html.push_str("<td>–</td></tr>\n"),
            }
        }
        html.push_str("</tbody></table></div>\n");
    }
}

/// A cell with a bar and its percentage.
fn put_share(html: &mut String, class: &str, share: Option<f64>) {
    put!(html, "<td class=\"share {class}\">");
    put_meter(html, share.unwrap_or(0.0));
    put!(html, "{}</td>", percent_text(share));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::well_formed;

    fn html(labels: usize, counts: &[Vec<u64>]) -> String {
        let labels = (0..labels).map(|class| format!("<{class}>&")).collect();
        let mut html = String::from("<div>");
        put_confusion(&mut html, &Report { labels, ..Report::default() }, counts);
        html.push_str("</div>");
        well_formed::check(&html).unwrap();
        html
    }

    /// Every class right nine times, and taken once for the next one.
    fn ring(classes: usize) -> Vec<Vec<u64>> {
        let mut counts = vec![vec![0; classes]; classes];
        for class in 0..classes {
            counts[class][class] = 9;
            counts[class][(class + 1) % classes] += 1;
        }
        counts
    }

    #[test]
    fn recall_is_of_rows_and_precision_of_columns() {
        let report = Report::default();
        let counts = [vec![8, 2, 0], vec![0, 5, 5], vec![0, 0, 0]];
        let matrix = Matrix::new(&report, &counts);
        assert_eq!([0, 1, 2].map(|class| matrix.recall(class)), [Some(80.0), Some(50.0), None]);
        assert_eq!(
            [0, 1, 2].map(|class| matrix.precision(class)),
            [Some(100.0), Some(500.0 / 7.0), Some(0.0)]
        );
        let pairs: Vec<_> =
            matrix.pairs().iter().map(|pair| (pair.truth, pair.predicted, pair.count)).collect();
        assert_eq!(pairs, [(1, 2, 5), (0, 1, 2)]);
    }

    #[test]
    fn the_number_of_classes_decides_what_is_shown() {
        let [few, many, most] = [20, 40, 41].map(|classes| html(classes, &ring(classes)));
        assert!(few.contains("class=\"matrix\"") && few.contains("precision</th>"));
        assert!(many.contains("class=\"matrix dense\"") && !many.contains("precision</th>"));
        assert!(!most.contains("class=\"matrix") && most.contains("lowest recall"));
        assert_eq!(few.matches("<td class=\"share wrong\">").count(), PAIRS[0]);
        assert_eq!(most.matches("<td class=\"share wrong\">").count(), PAIRS[1]);
    }

    #[test]
    fn shades_are_shares_of_the_row() {
        let html = html(2, &[vec![1_000_000, 0], vec![25, 75]]);
        for (class, count) in [("r8", "1000000"), ("w0", "0"), ("w4", "25"), ("r7", "75")] {
            let cell = html.split(&format!("<td class=\"{class}\"")).nth(1).expect(class);
            assert!(
                cell.split("</td>").next().unwrap().ends_with(&format!(">{count}")),
                "{class}: {cell:.80}"
            );
        }
    }

    #[test]
    fn ragged_empty_and_huge_counts_are_no_trouble() {
        assert!(html(3, &[]).contains("No image was evaluated"));
        assert!(html(0, &[vec![0]]).contains("No image was evaluated"));
        assert!(html(2, &[vec![3], vec![], vec![0, 0, 0, 4]]).contains("class 3"));
        assert!(html(2, &[vec![u64::MAX, u64::MAX]]).contains("100.0"));
        assert!(html(2, &[vec![3, 0], vec![0, 3]]).contains("every image was recognised"));
    }
}
