//! The section on the training itself: curves, learning rate, speed, and the table behind them.

use super::chart::{Axis, LineChart, Marker, Scale, Series, Stroke};
use super::markup::{compact, fixed, optional, put};
use super::{EpochRow, Report};

/// Writes the section's content.
pub(super) fn put_training(html: &mut String, report: &Report) {
    put_divergence(html, &report.epochs);
    html.push_str("<div class=\"charts\">\n");
    for chart in
        [loss(report), accuracy(report)].into_iter().flatten().chain([learning_rate(report), speed(report)])
    {
        put!(html, "<figure>{}</figure>\n", chart.to_svg());
    }
    html.push_str("</div>\n");
    put_table(html, report);
}

fn put_divergence(html: &mut String, epochs: &[EpochRow]) {
    let mut diverged = epochs.iter().filter(|row| !row.train_loss.is_finite());
    if let Some(first) = diverged.next() {
        let (epoch, loss, more) = (first.epoch, fixed(first.train_loss, 0), diverged.count());
        put!(html, "<p class=\"warning\">⚠ The training loss was {loss} in epoch {epoch}");
        match more {
            0 => html.push_str(".</p>\n"),
            1 => html.push_str(" and in one more epoch.</p>\n"),
            more => put!(html, " and in {more} more epochs.</p>\n"),
        }
    }
}

/// One curve of the epochs; `None` when nothing was measured.
fn curve(
    report: &Report,
    name: &str,
    stroke: Stroke,
    value: impl Fn(&EpochRow) -> Option<f64>,
) -> Option<Series> {
    let points = report.epochs.iter().map(|row| (row.epoch as f64, value(row).unwrap_or(f64::NAN)));
    report.epochs.iter().any(|row| value(row).is_some()).then(|| Series::new(name, stroke, points))
}

fn chart(title: &str, series: Vec<Series>) -> LineChart {
    let x = Axis { label: "epoch".into(), whole: true, ..Axis::default() };
    LineChart { title: title.into(), x, series, ..LineChart::default() }
}

/// Marks the best epoch and rings its value.
fn mark_best(report: &Report, chart: &mut LineChart, value: impl Fn(&EpochRow) -> Option<f64>) {
    if let Some(row) = report.best_row() {
        let label = format!("best: epoch {}", row.epoch);
        chart.markers.push(Marker { x: row.epoch as f64, y: value(row), label });
    }
}

fn loss(report: &Report) -> Option<LineChart> {
    let series: Vec<Series> = [
        curve(report, "training", Stroke::Dashed, |row| Some(row.train_loss)),
        curve(report, "validation", Stroke::Solid, |row| row.val_loss),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut values: Vec<f64> = series.iter().flat_map(|series| &series.points).map(|point| point.y).collect();
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let mut chart = chart("Loss", series);
    // A loss that spans orders of magnitude (a spike, a memorised training set) would be a flat line.
    let spread = match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(lowest), Some(median), Some(highest)) => *lowest > 0.0 && highest / median > 20.0,
        _ => false,
    };
    if spread {
        chart.title.push_str(" (logarithmic)");
        chart.y.scale = Scale::Logarithmic;
    } else {
        chart.y.include.push(0.0);
    }
    mark_best(report, &mut chart, |row| row.val_loss);
    (!chart.series.is_empty()).then_some(chart)
}

fn accuracy(report: &Report) -> Option<LineChart> {
    let series: Vec<Series> = [
        curve(report, "training", Stroke::Dashed, |row| row.train_top1),
        curve(report, "validation", Stroke::Solid, |row| row.val_top1),
        curve(report, "validation, top-5", Stroke::Solid, |row| row.val_top5),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut chart = chart("Top-1 accuracy (percent)", series);
    mark_best(report, &mut chart, |row| row.val_top1);
    (!chart.series.is_empty()).then_some(chart)
}

fn small(title: &str, series: Option<Series>) -> LineChart {
    let mut chart = chart(title, series.into_iter().collect());
    chart.height = 180;
    chart.y.include.push(0.0);
    chart
}

fn learning_rate(report: &Report) -> LineChart {
    small("Learning rate", curve(report, "learning rate", Stroke::Solid, |row| Some(row.lr)))
}

fn speed(report: &Report) -> LineChart {
    small(
        "Training images a second",
        curve(report, "images a second", Stroke::Solid, |row| Some(row.images_per_second)),
    )
}

/// The numbers behind the curves.
fn put_table(html: &mut String, report: &Report) {
    let count = report.epochs.len();
    put!(html, "<details><summary>All epochs as a table ({count})</summary>\n");
    html.push_str("<div class=\"scroll tall\" role=\"region\" aria-label=\"All epochs\" tabindex=\"0\"><table>\n<thead><tr>");
    for head in
        ["Epoch", "Train loss", "Train top-1 %", "Val loss", "Val top-1 %", "Val top-5 %", "Learning rate"]
    {
        put!(html, "<th scope=\"col\" class=\"n\">{head}</th>");
    }
    html.push_str("<th scope=\"col\" class=\"n\">Seconds</th><th scope=\"col\" class=\"n\">Images/s</th></tr></thead>\n<tbody>\n");
    for row in &report.epochs {
        let (class, star) = match report.best_epoch == Some(row.epoch) {
            true => (" class=\"chosen\"", "best ★ "),
            false => ("", ""),
        };
        put!(html, "<tr{class}><th scope=\"row\" class=\"n\">{star}{}</th>", row.epoch);
        for cell in [
            fixed(row.train_loss, 4),
            optional(row.train_top1, 2),
            optional(row.val_loss, 4),
            optional(row.val_top1, 2),
            optional(row.val_top5, 2),
            compact(row.lr),
            fixed(row.seconds, 1),
            fixed(row.images_per_second, 0),
        ] {
            put!(html, "<td class=\"n\">{cell}</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(losses: &[f64]) -> Report {
        let epochs = losses.iter().enumerate();
        let epochs = epochs.map(|(epoch, loss)| EpochRow { epoch, train_loss: *loss, ..EpochRow::default() });
        Report { epochs: epochs.collect(), ..Report::default() }
    }

    #[test]
    fn a_spike_turns_the_loss_logarithmic() {
        let scale = |losses: &[f64]| loss(&report(losses)).unwrap().y.scale;
        assert_eq!(scale(&[2.3, 1.0, 0.5, 0.3]), Scale::Linear);
        assert_eq!(scale(&[2.3, 1e6, 0.5, 0.3]), Scale::Logarithmic);
        assert_eq!(scale(&[2.3, 1e6, 0.5, 0.0]), Scale::Linear, "zero has no logarithm");
        assert_eq!(scale(&[f64::NAN]), Scale::Linear);
    }

    #[test]
    fn what_was_not_measured_has_no_curve() {
        let mut report = report(&[1.0, 0.5]);
        assert_eq!(accuracy(&report), None);
        report.epochs[1].val_top1 = Some(50.0);
        let series = accuracy(&report).unwrap().series;
        assert_eq!(series.len(), 1);
        assert!(series[0].points[0].y.is_nan() && series[0].points[1].y == 50.0);
    }

    #[test]
    fn the_best_epoch_is_marked_by_its_number() {
        let mut report = report(&[1.0, 0.5, 0.7]);
        report.epochs.iter_mut().for_each(|row| row.epoch += 10);
        report.epochs[1].val_loss = Some(0.6);
        report.best_epoch = Some(11);
        let markers = loss(&report).unwrap().markers;
        assert_eq!((markers[0].x, markers[0].y, markers.len()), (11.0, Some(0.6), 1));
        report.best_epoch = Some(1);
        assert!(loss(&report).unwrap().markers.is_empty(), "no such epoch");
        let mut html = String::new();
        report.best_epoch = Some(12);
        put_training(&mut html, &report);
        assert!(html.contains("<tr class=\"chosen\"><th scope=\"row\" class=\"n\">best ★ 12</th>"), "{html}");
    }

    #[test]
    fn divergence_is_said_in_words() {
        let told = |losses: &[f64]| {
            let mut html = String::new();
            put_divergence(&mut html, &report(losses).epochs);
            html
        };
        assert_eq!(told(&[1.0]), "");
        assert!(told(&[1.0, f64::NAN]).contains("was NaN in epoch 1."));
        assert!(
            told(&[1.0, f64::INFINITY, f64::NAN, f64::NAN])
                .contains("was ∞ in epoch 1 and in 2 more epochs.")
        );
    }
}
