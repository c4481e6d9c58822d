//! Round numbers for the axes of a chart.

use super::markup::{compact, fixed};

/// The ticks of an axis and the range it spans.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ticks {
    /// The axis reaches from here…
    pub(super) low: f64,
    /// …to here.
    pub(super) high: f64,
    /// Position and text of each tick, rising, all within the range.
    pub(super) marks: Vec<(f64, String)>,
}

/// How a linear axis chooses its ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// About this many steps, at least 1.
    pub(super) steps: usize,
    /// Only whole numbers, as epochs are.
    pub(super) whole: bool,
    /// Widen the range to end on ticks.
    pub(super) widen: bool,
}

/// Ticks at multiples of 1, 2 or 5 times a power of ten. `low <= high`, both finite and of moderate size.
pub(super) fn linear(low: f64, high: f64, wish: Wish) -> Ticks {
    let (mut low, mut high) = open(low, high, wish.whole);
    let mut step = round_up((high - low) / wish.steps.max(1) as f64);
    if wish.whole {
        step = step.max(1.0);
    }
    // A tick a hair outside the range is inside: the range's ends carry rounding errors.
    let slack = step * 1e-6;
    let (first, last) = if wish.widen {
        (((low + slack) / step).floor(), ((high - slack) / step).ceil())
    } else {
        (((low - slack) / step).ceil(), ((high + slack) / step).floor())
    };
    if wish.widen {
        (low, high) = (first * step, last * step);
    }
    let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    let count = (last - first).max(0.0) as usize;
    let mut marks = Vec::with_capacity(count + 1);
    for index in 0..=count {
        let value = (first + index as f64) * step;
        if first > last {
            break;
        }
        let text = if (1e-5..1e6).contains(&step) { fixed(value, decimals) } else { compact(value) };
        marks.push((value, text));
    }
    Ticks { low, high, marks }
}

/// Ticks at powers of ten, or at 1, 2 and 5 times them when the range holds only a few. `0 < low <= high`.
pub(super) fn logarithmic(low: f64, high: f64, steps: usize) -> Ticks {
    let (low, high) = if high / low < 1.5 { (low / 1.5, high * 1.5) } else { (low, high) };
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let decades = (last - first).max(1) as usize;
    let mantissas: &[f64] = if decades * 3 <= steps.max(3) { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = decades.div_ceil(steps.max(1)).max(1);
    let candidates: Vec<f64> = (first..=last)
        .step_by(every)
        .flat_map(|power| mantissas.iter().map(move |mantissa| mantissa * 10f64.powi(power)))
        .collect();
    // The range ends on the candidates next to the data.
    let below = candidates.iter().copied().rfind(|tick| *tick <= low * (1.0 + 1e-9)).unwrap_or(low);
    let above = candidates.iter().copied().find(|tick| *tick >= high * (1.0 - 1e-9)).unwrap_or(high);
    let marks = candidates
        .into_iter()
        .filter(|tick| (below..=above).contains(tick))
        .map(|tick| (tick, compact(tick)))
        .collect();
    Ticks { low: below, high: above, marks }
}

/// Gives a range without extent one, around its value.
fn open(low: f64, high: f64, whole: bool) -> (f64, f64) {
    let size = low.abs().max(high.abs());
    if high - low > size * 1e-9 {
        return (low, high);
    }
    if whole {
        (low - 0.5, high + 0.5)
    } else if size > 0.0 {
        (low - size * 0.05, high + size * 0.05)
    } else {
        // Most measurements cannot be negative.
        (0.0, 1.0)
    }
}

/// The smallest of 1, 2 or 5 times a power of ten that is at least `step`.
fn round_up(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|round| *round >= step * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ticks: &Ticks) -> Vec<&str> {
        ticks.marks.iter().map(|(_, text)| text.as_str()).collect()
    }

    const LOOSE: Wish = Wish { steps: 5, whole: false, widen: true };

    #[test]
    fn linear_ticks_are_round_and_cover_the_data() {
        assert_eq!(texts(&linear(0.0, 2.31, LOOSE)), ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]);
        assert_eq!(texts(&linear(38.2, 99.7, LOOSE)), ["20", "40", "60", "80", "100"]);
        assert_eq!(
            texts(&linear(-1.0, 1.0, Wish { steps: 4, ..LOOSE })),
            ["−1.0", "−0.5", "0.0", "0.5", "1.0"]
        );
        assert_eq!(texts(&linear(0.0, 0.1, LOOSE)), ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]);
        assert_eq!(texts(&linear(0.0, 3e-7, Wish { steps: 3, ..LOOSE })), ["0", "1e−7", "2e−7", "3e−7"]);
        assert_eq!(texts(&linear(0.0, 4e6, Wish { steps: 2, ..LOOSE })), ["0", "2e6", "4e6"]);
    }

    #[test]
    fn whole_ticks_stay_whole_and_inside() {
        let epochs = |low, high| linear(low, high, Wish { steps: 8, whole: true, widen: false });
        assert_eq!(texts(&epochs(1.0, 3.0)), ["1", "2", "3"]);
        assert_eq!(texts(&epochs(1.0, 1.0)), ["1"]);
        assert_eq!(texts(&epochs(1.0, 160.0)), ["20", "40", "60", "80", "100", "120", "140", "160"]);
        assert_eq!((epochs(1.0, 160.0).low, epochs(1.0, 160.0).high), (1.0, 160.0));
        assert_eq!(texts(&epochs(0.0, 300.0)), ["0", "50", "100", "150", "200", "250", "300"]);
    }

    #[test]
    fn a_constant_gets_room() {
        for value in [0.1, -7.0, 1e12, 1e-12] {
            let ticks = linear(value, value, LOOSE);
            assert!(ticks.low < value && value < ticks.high, "{value}: {ticks:?}");
            assert!((2..10).contains(&ticks.marks.len()), "{value}: {ticks:?}");
        }
        let zero = linear(0.0, 0.0, LOOSE);
        assert_eq!((zero.low, zero.high), (0.0, 1.0), "nothing negative for a learning rate of 0");
    }

    #[test]
    fn any_range_gives_a_handful_of_rising_ticks() {
        for exponent in -100..100 {
            for mantissa in [1.0, 1.7, 2.3, 4.9, 5.1, 9.99] {
                let high = mantissa * 10f64.powi(exponent);
                for low in [0.0, high * 0.3, -high] {
                    let ticks = linear(low, high, LOOSE);
                    assert!(ticks.low <= low + high * 1e-5 && ticks.high >= high * (1.0 - 1e-5), "{ticks:?}");
                    assert!((3..9).contains(&ticks.marks.len()), "{low} {high}: {ticks:?}");
                    assert!(ticks.marks.is_sorted_by(|a, b| a.0 < b.0), "{ticks:?}");
                }
            }
        }
    }

    #[test]
    fn logarithmic_ticks_are_decades_or_one_two_five() {
        assert_eq!(texts(&logarithmic(0.002, 3.0, 5)), ["0.001", "0.01", "0.1", "1", "10"]);
        assert_eq!(texts(&logarithmic(1.2, 8.0, 5)), ["1", "2", "5", "10"]);
        assert_eq!(texts(&logarithmic(3.0, 3.0, 6)), ["2", "5"]);
        let many = logarithmic(1e-100, 1e100, 5);
        assert!(many.marks.len() <= 7 && many.low <= 1e-100 && many.high >= 1e100, "{many:?}");
    }
}
