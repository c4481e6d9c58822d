//! Lays a chart out and writes its SVG.

use super::{LineChart, Marker, Point, Series, Stroke};
use crate::report::markup::{Escaped, compact, put};
use crate::report::ticks::Ticks;

/// Distinct colours in `chart.css`.
const COLOURS: usize = 6;
/// Height of a line of text.
const LINE: f64 = 17.0;
/// A curve with at most this many points shows them as dots.
const FEW_POINTS: usize = 24;

/// A place in SVG units.
#[derive(Debug, Clone, Copy)]
struct At {
    x: f64,
    y: f64,
}

/// The chart with everything placed.
struct Layout<'a> {
    chart: &'a LineChart,
    width: f64,
    height: f64,
    /// The plot's edges.
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Ticks,
    y: Ticks,
    /// Where each legend entry starts; empty when one series needs no legend.
    legend: Vec<At>,
}

/// The `<svg>` element; with a `style` it is a document of its own.
pub(super) fn svg(chart: &LineChart, style: Option<&str>) -> String {
    let layout = Layout::new(chart);
    let (width, height) = (layout.width, layout.height);
    let mut svg = String::new();
    put!(
        &mut svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" role=\"img\" viewBox=\"0 0 {width} {height}\""
    );
    match style {
        // Without a size of its own, a document would fill the window.
        Some(style) => put!(
            &mut svg,
            " width=\"{width}\" height=\"{height}\" style=\"background: var(--chart-paper)\">\n<style>\n{style}</style>"
        ),
        None => svg.push('>'),
    }
    put!(
        &mut svg,
        "\n<title>{}</title>\n<desc>{}</desc>\n",
        Escaped(&chart.title),
        Escaped(&describe(chart))
    );
    put!(&mut svg, "<text class=\"title\" x=\"0\" y=\"15\">{}</text>\n", Escaped(&chart.title));
    layout.draw_legend(&mut svg);
    layout.draw_axes(&mut svg);
    for marker in &chart.markers {
        layout.draw_marker(&mut svg, marker);
    }
    for (index, series) in chart.series.iter().enumerate() {
        layout.draw_series(&mut svg, index, series);
    }
    // Rings lie over the curves they mark.
    for marker in &chart.markers {
        if let Some(at) = marker.y.and_then(|y| layout.at(marker.x, y)) {
            put!(&mut svg, "<circle class=\"ring\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"/>\n", at.x, at.y);
        }
    }
    layout.draw_labels(&mut svg);
    layout.draw_hits(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

impl<'a> Layout<'a> {
    fn new(chart: &'a LineChart) -> Self {
        let (width, height) = (f64::from(chart.width.max(200)), f64::from(chart.height.max(120)));
        let legend = place_legend(chart, width);
        let legend_bottom = legend.last().map_or(15.0, |at| at.y);
        let marker_room = if chart.markers.is_empty() { 0.0 } else { LINE };
        let top = (legend_bottom + 14.0 + marker_room).min(height - 80.0);
        let bottom = height - if chart.x.label.is_empty() { 24.0 } else { 40.0 };

        let points = || chart.series.iter().flat_map(|series| &series.points);
        let shown = || points().filter(|point| chart.x.shows(point.x) && chart.y.shows(point.y));
        let y_values = shown().flat_map(|point| {
            let [low, high] = point.interval.unwrap_or([point.y; 2]);
            [point.y, low, high]
        });
        let y = chart.y.ticks(y_values, ((bottom - top) / 36.0) as usize, true);
        let widest = y.marks.iter().map(|(_, text)| text_width(text)).fold(0.0, f64::max);
        let left = widest + 10.0 + if chart.y.label.is_empty() { 0.0 } else { LINE };
        let right = width - 14.0;
        let x =
            chart.x.ticks(points().map(|point| point.x), ((right - left) / 52.0).max(1.0) as usize, false);
        Layout { chart, width, height, left, right, top, bottom, x, y, legend }
    }

    /// Where a horizontal value lies, when the axis can show it.
    fn across(&self, value: f64) -> Option<f64> {
        let place = self.chart.x.place(value, &self.x);
        (self.chart.x.shows(value) && (-0.001..=1.001).contains(&place))
            .then_some(self.left + place * (self.right - self.left))
    }

    /// Where a vertical value lies, when the axis can show it.
    fn down(&self, value: f64) -> Option<f64> {
        let place = self.chart.y.place(value, &self.y);
        (self.chart.y.shows(value) && (-0.001..=1.001).contains(&place))
            .then_some(self.bottom - place * (self.bottom - self.top))
    }

    fn at(&self, x: f64, y: f64) -> Option<At> {
        Some(At { x: self.across(x)?, y: self.down(y)? })
    }

    fn draw_legend(&self, svg: &mut String) {
        for (index, (at, series)) in self.legend.iter().zip(&self.chart.series).enumerate() {
            put!(svg, "<g class=\"{}\">", class(index, series));
            let middle = at.y - 4.0;
            if series.stroke == Stroke::Points {
                put_symbol(svg, index, At { x: at.x + 11.0, y: middle });
            } else {
                put!(svg, "<path class=\"line\" d=\"M{:.1} {middle:.1}h22\"/>", at.x);
            }
            let (x, name) = (at.x + 28.0, shorten(&series.name));
            put!(svg, "<text class=\"name\" x=\"{x:.1}\" y=\"{:.1}\">{}</text></g>\n", at.y, Escaped(&name));
        }
    }

    fn draw_axes(&self, svg: &mut String) {
        let &Layout { left, right, top, bottom, .. } = self;
        for (value, text) in &self.y.marks {
            if let Some(y) = self.down(*value) {
                put!(svg, "<path class=\"grid\" d=\"M{left:.1} {y:.1}H{right:.1}\"/>");
                let (x, y) = (left - 8.0, y + 4.0);
                put!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{text}</text>\n");
            }
        }
        for (value, text) in &self.x.marks {
            if let Some(x) = self.across(*value) {
                put!(svg, "<path class=\"axis\" d=\"M{x:.1} {bottom:.1}v4\"/>");
                let y = bottom + 17.0;
                put!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>\n");
            }
        }
        put!(svg, "<path class=\"axis\" d=\"M{left:.1} {bottom:.1}H{right:.1}\"/>\n");
        let (middle, low) = ((left + right) / 2.0, self.height - 5.0);
        if !self.chart.x.label.is_empty() {
            let label = Escaped(&self.chart.x.label);
            put!(svg, "<text x=\"{middle:.1}\" y=\"{low:.1}\" text-anchor=\"middle\">{label}</text>\n");
        }
        let centre = (top + bottom) / 2.0;
        if !self.chart.y.label.is_empty() {
            let label = Escaped(&self.chart.y.label);
            put!(
                svg,
                "<text transform=\"translate(11 {centre:.1}) rotate(-90)\" text-anchor=\"middle\">{label}</text>\n"
            );
        }
        let mut points = self.chart.series.iter().flat_map(|series| &series.points);
        if !points.any(|point| self.at(point.x, point.y).is_some()) {
            put!(svg, "<text x=\"{middle:.1}\" y=\"{centre:.1}\" text-anchor=\"middle\">no values</text>\n");
        }
    }

    fn draw_marker(&self, svg: &mut String, marker: &Marker) {
        let Some(x) = self.across(marker.x) else { return };
        let &Layout { left, right, top, bottom, .. } = self;
        put!(svg, "<path class=\"mark\" d=\"M{x:.1} {:.1}V{bottom:.1}\"/>", top - 4.0);
        // Centred over the line, but never over the chart's edge.
        let half = text_width(&marker.label) / 2.0;
        let x = if left + half < right - half {
            x.clamp(left + half, right - half)
        } else {
            (left + right) / 2.0
        };
        let label = Escaped(&marker.label);
        put!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n", top - 8.0);
    }

    fn draw_series(&self, svg: &mut String, index: usize, series: &Series) {
        put!(svg, "<g class=\"{}\">", class(index, series));
        for point in &series.points {
            let Some([low, high]) = point.interval else { continue };
            if let (Some(x), Some(low), Some(high)) = (self.across(point.x), self.down(low), self.down(high))
            {
                let start = x - 4.0;
                put!(
                    svg,
                    "<path class=\"bar\" d=\"M{start:.1} {high:.1}h8M{x:.1} {high:.1}V{low:.1}M{start:.1} {low:.1}h8\"/>"
                );
            }
        }
        let places: Vec<Option<At>> = series.points.iter().map(|point| self.at(point.x, point.y)).collect();
        if series.stroke == Stroke::Points {
            for at in places.into_iter().flatten() {
                put_symbol(svg, index, at);
            }
        } else {
            let runs = || places.split(Option::is_none).map(|run| run.iter().copied().flatten());
            let mut path = String::new();
            for run in runs().filter(|run| run.clone().nth(1).is_some()) {
                for (step, at) in run.enumerate() {
                    put!(&mut path, "{}{:.1} {:.1}", if step == 0 { 'M' } else { 'L' }, at.x, at.y);
                }
            }
            if !path.is_empty() {
                put!(svg, "<path class=\"line\" d=\"{path}\"/>");
            }
            let few = series.points.len() <= FEW_POINTS;
            for at in runs().filter(|run| few || run.clone().nth(1).is_none()).flatten() {
                put!(svg, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\"/>", at.x, at.y);
            }
        }
        svg.push_str("</g>\n");
    }

    /// Writes each point's name to its right or left, where it covers neither a point, nor its interval, nor an earlier name.
    fn draw_labels(&self, svg: &mut String) {
        let all = self.chart.series.iter().flat_map(|series| {
            series.points.iter().filter(|point| series.stroke == Stroke::Points || point.label.is_some())
        });
        let around = |point: &Point| {
            let at = self.at(point.x, point.y)?;
            let [low, high] = point.interval.unwrap_or([point.y; 2]).map(|y| self.down(y).unwrap_or(at.y));
            let (top, bottom) = (at.y.min(high) - 4.0, at.y.max(low) + 4.0);
            Some([At { x: at.x - 4.0, y: top }, At { x: at.x + 4.0, y: bottom }])
        };
        let mut taken: Vec<[At; 2]> = all.filter_map(around).collect();
        let points = self.chart.series.iter().flat_map(|series| &series.points);
        for point in points.filter(|point| point.label.is_some()) {
            let (Some(at), Some(label)) = (self.at(point.x, point.y), &point.label) else { continue };
            let width = text_width(label);
            for start in [at.x + 7.0, at.x - 7.0 - width] {
                let [low, high] = [At { x: start, y: at.y - 7.0 }, At { x: start + width, y: at.y + 7.0 }];
                let inside = low.x >= self.left && high.x <= self.width;
                let covers = |[a, b]: &[At; 2]| low.x < b.x && a.x < high.x && low.y < b.y && a.y < high.y;
                if inside && !taken.iter().any(covers) {
                    let (y, label) = (at.y + 4.0, Escaped(label));
                    put!(svg, "<text class=\"label\" x=\"{start:.1}\" y=\"{y:.1}\">{label}</text>\n");
                    taken.push([low, high]);
                    break;
                }
            }
        }
    }

    /// A strip over each horizontal position that tells its values under the pointer, without a script.
    fn draw_hits(&self, svg: &mut String) {
        let mut stops: Vec<(f64, f64)> = self
            .chart
            .series
            .iter()
            .flat_map(|series| &series.points)
            .filter_map(|point| Some((self.across(point.x)?, point.x)))
            .collect();
        stops.sort_by(|a, b| a.0.total_cmp(&b.0));
        stops.dedup_by(|a, b| a.1 == b.1);
        // Strips thinner than a unit cannot be hit.
        if stops.len() as f64 > self.right - self.left {
            return;
        }
        let (top, bottom) = (self.top, self.bottom);
        for (index, (x, value)) in stops.iter().enumerate() {
            let before = index.checked_sub(1).and_then(|index| stops.get(index));
            let start = before.map_or(self.left, |before| (before.0 + x) / 2.0);
            let end = stops.get(index + 1).map_or(self.right, |after| (after.0 + x) / 2.0);
            put!(svg, "<g class=\"hit\"><title>{}</title>", Escaped(&self.values_at(*value)));
            put!(svg, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>");
            let (width, height) = (end - start, bottom - top);
            put!(
                svg,
                "<rect x=\"{start:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/></g>\n"
            );
        }
    }

    /// All that is known at a horizontal position, a line each.
    fn values_at(&self, x: f64) -> String {
        let mut text = format!("{} {}", self.chart.x.label, compact(x)).trim().to_string();
        for series in &self.chart.series {
            for point in series.points.iter().filter(|point| point.x == x) {
                let name = point.label.as_deref().unwrap_or(&series.name);
                put!(&mut text, "\n{name} {}", compact(point.y));
                if let Some([low, high]) = point.interval {
                    put!(&mut text, " ({} to {})", compact(low), compact(high));
                }
            }
        }
        text
    }
}

/// The chart in words, for those who cannot see it.
fn describe(chart: &LineChart) -> String {
    let mut text = String::new();
    let unit = if chart.x.label.is_empty() { "x" } else { &chart.x.label };
    for series in &chart.series {
        let shown: Vec<_> =
            series.points.iter().filter(|point| chart.x.shows(point.x) && chart.y.shows(point.y)).collect();
        let lowest = shown.iter().min_by(|a, b| a.y.total_cmp(&b.y));
        let highest = shown.iter().max_by(|a, b| a.y.total_cmp(&b.y));
        let (Some(first), Some(last), Some(lowest), Some(highest)) =
            (shown.first(), shown.last(), lowest, highest)
        else {
            put!(&mut text, "{}: no values. ", series.name);
            continue;
        };
        let told = |y: f64, x: f64| format!("{} at {unit} {}", compact(y), compact(x));
        put!(&mut text, "{}: {}", series.name, told(first.y, first.x));
        if shown.len() > 1 {
            put!(&mut text, ", {}", told(last.y, last.x));
            put!(&mut text, ", lowest {}, highest {}", told(lowest.y, lowest.x), told(highest.y, highest.x));
        }
        text.push_str(". ");
    }
    for marker in &chart.markers {
        put!(&mut text, "Marked at {unit} {}: {}. ", compact(marker.x), marker.label);
    }
    text.trim_end().to_string()
}

/// Legend entries side by side, in as many rows as they need.
fn place_legend(chart: &LineChart, width: f64) -> Vec<At> {
    let mut places = Vec::new();
    if chart.series.len() < 2 {
        return places;
    }
    let mut at = At { x: 0.0, y: 15.0 + LINE + 3.0 };
    for series in &chart.series {
        let needed = 28.0 + text_width(&shorten(&series.name));
        if at.x > 0.0 && at.x + needed > width {
            at = At { x: 0.0, y: at.y + LINE };
        }
        places.push(at);
        at.x += needed + 18.0;
    }
    places
}

/// The colour and dash of a series.
fn class(index: usize, series: &Series) -> String {
    let dashed = series.stroke == Stroke::Dashed || (index / COLOURS) % 2 == 1;
    format!("s{}{}", index % COLOURS, if dashed { " dashed" } else { "" })
}

/// A point whose shape tells its series apart without colour.
fn put_symbol(svg: &mut String, index: usize, At { x, y }: At) {
    match index % 4 {
        0 => put!(svg, "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"),
        1 => put!(svg, "<path class=\"dot\" d=\"M{:.1} {:.1}h7v7h-7z\"/>", x - 3.5, y - 3.5),
        2 => put!(svg, "<path class=\"dot\" d=\"M{x:.1} {:.1}l5 8.6h-10z\"/>", y - 5.2),
        _ => put!(svg, "<path class=\"dot\" d=\"M{x:.1} {:.1}l5 5l-5 5l-5-5z\"/>", y - 5.0),
    }
}

/// About how wide a text of 12 units is; wide (East Asian) letters count double.
fn text_width(text: &str) -> f64 {
    text.chars().map(|letter| if letter >= '\u{1100}' && letter.is_alphabetic() { 12.0 } else { 6.7 }).sum()
}

/// A legend's name, cut where it would fill the chart.
fn shorten(name: &str) -> String {
    const LONGEST: usize = 40;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_string(),
    }
}
