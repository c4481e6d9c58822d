//! Line charts as SVG: curves over epochs, study curves with intervals, rooflines with labelled points.

mod draw;

use super::ticks::{self, Ticks, Wish};

/// A chart of curves or points over one axis. What is not finite, or not positive on a logarithmic axis, is left out
/// and interrupts its curve.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    /// Stands above the chart and names it to screen readers.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The curves; the first six have colours of their own, later ones repeat them dashed.
    pub series: Vec<Series>,
    /// Places on the horizontal axis worth marking.
    pub markers: Vec<Marker>,
    /// Width in SVG units; text is 12 units high. At least 200 is drawn.
    pub width: u32,
    /// Height in SVG units. At least 120 is drawn.
    pub height: u32,
}

/// One axis of a [`LineChart`]. Its range follows the data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Axis {
    /// What it measures, with the unit: `epoch`, `FLOP per byte`. May be empty.
    pub label: String,
    /// How values are spread over the axis.
    pub scale: Scale,
    /// Ticks only at whole numbers (epochs, counts).
    pub whole: bool,
    /// Values the axis reaches even when no point does, for example 0.
    pub include: Vec<f64>,
}

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    #[default]
    Linear,
    /// Equal factors.
    Logarithmic,
}

/// One curve, or one group of points.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// How it is drawn.
    pub stroke: Stroke,
    /// The points in the order they are joined.
    pub points: Vec<Point>,
}

/// How a [`Series`] is drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stroke {
    /// A line.
    #[default]
    Solid,
    /// A dashed line.
    Dashed,
    /// Separate points, their shape differing from series to series.
    Points,
}

/// One point of a [`Series`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Point {
    /// Position on the horizontal axis.
    pub x: f64,
    /// Position on the vertical axis.
    pub y: f64,
    /// An interval around `y`, drawn as an error bar: low, high.
    pub interval: Option<[f64; 2]>,
    /// A name, written beside the point where there is room and always shown under the pointer.
    pub label: Option<String>,
}

/// A vertical line that marks a place on the horizontal axis, for example the best epoch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Marker {
    /// The place.
    pub x: f64,
    /// The value to ring there, if any.
    pub y: Option<f64>,
    /// Stands above the line.
    pub label: String,
}

impl Default for LineChart {
    fn default() -> Self {
        LineChart {
            title: String::new(),
            x: Axis::default(),
            y: Axis::default(),
            series: Vec::new(),
            markers: Vec::new(),
            width: 480,
            height: 290,
        }
    }
}

impl From<(f64, f64)> for Point {
    fn from((x, y): (f64, f64)) -> Self {
        Point { x, y, interval: None, label: None }
    }
}

impl Series {
    /// A curve through plain points.
    pub fn new(
        name: impl Into<String>,
        stroke: Stroke,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Self {
        Series { name: name.into(), stroke, points: points.into_iter().map(Point::from).collect() }
    }
}

impl LineChart {
    /// The rules the charts' colours and text come from; [`LineChart::to_svg`] needs them once in its page.
    pub const CSS: &str = include_str!("chart.css");

    /// An `<svg>` element to stand inside an HTML page that has [`LineChart::CSS`] in a style sheet.
    pub fn to_svg(&self) -> String {
        draw::svg(self, None)
    }

    /// A standalone SVG document, with its own style, light and dark.
    pub fn to_document(&self) -> String {
        draw::svg(self, Some(Self::CSS))
    }
}

/// Larger numbers than any measurement, and small enough that sums and differences stay finite.
const LARGEST: f64 = 1e100;

impl Axis {
    /// Whether the axis can show a value.
    fn shows(&self, value: f64) -> bool {
        match self.scale {
            Scale::Linear => value.abs() <= LARGEST,
            Scale::Logarithmic => (1.0 / LARGEST..=LARGEST).contains(&value),
        }
    }

    /// The ticks for these values, about `steps` of them; `widen` lets the axis end on ticks.
    fn ticks(&self, values: impl Iterator<Item = f64>, steps: usize, widen: bool) -> Ticks {
        let (low, high) = values
            .chain(self.include.iter().copied())
            .filter(|value| self.shows(*value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = match (low <= high, self.scale) {
            (true, _) => (low, high),
            (false, Scale::Linear) => (0.0, 1.0),
            (false, Scale::Logarithmic) => (1.0, 10.0),
        };
        match self.scale {
            Scale::Linear => ticks::linear(low, high, Wish { steps, whole: self.whole, widen }),
            Scale::Logarithmic => ticks::logarithmic(low, high, steps),
        }
    }

    /// Where a value lies in the range of the ticks, 0 to 1.
    fn place(&self, value: f64, ticks: &Ticks) -> f64 {
        let along = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.ln(),
        };
        (along(value) - along(ticks.low)) / (along(ticks.high) - along(ticks.low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::well_formed;

    fn chart(series: Vec<Series>) -> LineChart {
        let x = Axis { label: "epoch".into(), whole: true, ..Axis::default() };
        LineChart { title: "Loss".into(), x, series, ..LineChart::default() }
    }

    fn line(points: &[(f64, f64)]) -> Series {
        Series::new("training", Stroke::Solid, points.iter().copied())
    }

    /// The `d` of every curve.
    fn paths(svg: &str) -> Vec<&str> {
        svg.split("<path class=\"line\" d=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn a_curve_is_one_path_inside_the_frame() {
        let svg = chart(vec![line(&[(1.0, 2.0), (2.0, 1.0), (3.0, 0.5)])]).to_svg();
        well_formed::check(&svg).unwrap();
        let [path] = paths(&svg)[..] else { panic!("one path: {svg}") };
        let numbers: Vec<f64> = path.split(['M', 'L', ' ']).filter_map(|text| text.parse().ok()).collect();
        assert_eq!(numbers.len(), 6, "{path}");
        assert!(
            numbers
                .chunks(2)
                .all(|point| (0.0..480.0).contains(&point[0]) && (0.0..290.0).contains(&point[1]))
        );
        // Larger values stand higher, later epochs further right.
        assert!(numbers[1] < numbers[3] && numbers[3] < numbers[5], "{path}");
        assert!(numbers[0] < numbers[2] && numbers[2] < numbers[4], "{path}");
    }

    #[test]
    fn what_is_not_finite_leaves_a_gap() {
        let mut points: Vec<(f64, f64)> = (0..30).map(|epoch| (f64::from(epoch), 1.0)).collect();
        (points[9].1, points[11].1) = (f64::NAN, f64::INFINITY);
        let svg = chart(vec![line(&points)]).to_svg();
        well_formed::check(&svg).unwrap();
        assert_eq!(paths(&svg)[0].matches('M').count(), 2, "two pieces of more than a point: {svg}");
        assert_eq!(
            svg.matches("<circle class=\"dot\"").count(),
            1,
            "the lone point between gaps is a dot: {svg}"
        );
        assert!(!svg.contains("\"NaN") && !svg.contains(" NaN\"") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("training NaN"), "the pointer still tells of it: {svg}");
    }

    #[test]
    fn one_point_is_a_dot_and_no_point_is_an_empty_frame() {
        let svg = chart(vec![line(&[(1.0, 2.0)])]).to_svg();
        well_formed::check(&svg).unwrap();
        assert!(paths(&svg).is_empty() && svg.contains("<circle class=\"dot\""), "{svg}");
        for series in [vec![], vec![line(&[])], vec![line(&[(f64::NAN, 1.0), (1.0, f64::NAN)])]] {
            let svg = chart(series).to_svg();
            well_formed::check(&svg).unwrap();
            assert!(svg.contains("no values"), "{svg}");
        }
    }

    #[test]
    fn extreme_values_and_sizes_stay_numbers() {
        for value in [f64::MAX, f64::MIN, f64::MIN_POSITIVE, 1e100, -1e100, 1e-300] {
            for scale in [Scale::Linear, Scale::Logarithmic] {
                let mut chart = chart(vec![line(&[(0.0, value), (1.0, 1.0), (value, 2.0)])]);
                (chart.x.scale, chart.y.scale) = (scale, scale);
                (chart.width, chart.height) = (0, 0);
                let svg = chart.to_svg();
                well_formed::check(&svg).unwrap();
                // Every second piece between quotes is an attribute's value.
                for number in svg.split('"').skip(1).step_by(2).flat_map(|value| value.split([' ', 'M', 'L']))
                {
                    if let Ok(number) = number.parse::<f64>() {
                        assert!(number.abs() < 10_000.0, "{value:e} {scale:?}: {number}");
                    }
                }
            }
        }
    }

    #[test]
    fn logarithmic_axes_place_equal_factors_at_equal_distances() {
        let mut chart = chart(vec![line(&[(1.0, 0.0), (2.0, 1.0), (3.0, 10.0), (4.0, 100.0)])]);
        chart.y.scale = Scale::Logarithmic;
        let svg = chart.to_svg();
        let numbers: Vec<f64> =
            paths(&svg)[0].split(['M', 'L', ' ']).filter_map(|text| text.parse().ok()).collect();
        assert_eq!(numbers.len(), 6, "zero has no place: {svg}");
        assert!((numbers[1] - 2.0 * numbers[3] + numbers[5]).abs() < 0.2, "{numbers:?}");
    }

    #[test]
    fn markers_intervals_and_labels_are_drawn_and_escaped() {
        let mut chart = chart(vec![line(&[(1.0, 2.0), (2.0, 1.0)]), line(&[(1.0, 3.0)])]);
        chart.title = "<i>&".into();
        chart.series[1].stroke = Stroke::Points;
        chart.series[1].name = "<script>\"".into();
        chart.series[1].points[0].interval = Some([2.5, 4.0]);
        chart.series[1].points[0].label = Some("a<b".into());
        chart.markers.push(Marker { x: 2.0, y: Some(1.0), label: "best & last".into() });
        for svg in [chart.to_svg(), chart.to_document()] {
            well_formed::check(&svg).unwrap();
            for text in [
                "&lt;i&gt;&amp;",
                "&lt;script&gt;&quot;",
                "a&lt;b",
                "best &amp; last",
                "class=\"bar\"",
                "class=\"ring\"",
            ] {
                assert!(svg.contains(text), "{text}: {svg}");
            }
        }
        assert!(chart.to_document().contains("<style>") && !chart.to_svg().contains("<style>"));
    }

    #[test]
    fn a_range_without_epochs_in_it_still_has_a_tick() {
        let svg = chart(vec![line(&[(7.0, 1.0)])]).to_svg();
        assert!(svg.contains(">7</text>"), "{svg}");
    }
}
