//! Escaping text for HTML and SVG, and writing numbers the way people read them.

use std::fmt::{self, Display, Write};

/// Shows a text inside an element or a double-quoted attribute, so that it stays text.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => to.write_str("&amp;")?,
                '<' => to.write_str("&lt;")?,
                '>' => to.write_str("&gt;")?,
                '"' => to.write_str("&quot;")?,
                '\'' => to.write_str("&#39;")?,
                '\n' | '\t' => to.write_char(character)?,
                // Neither HTML nor XML can hold these, escaped or not.
                '\u{fffe}' | '\u{ffff}' => to.write_char('\u{fffd}')?,
                other if other.is_control() => to.write_char('\u{fffd}')?,
                other => to.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// `write!` into a `String`, which cannot fail.
macro_rules! put {
    ($to:expr, $($format:tt)*) => {{
        let _ = std::fmt::Write::write_fmt($to, format_args!($($format)*));
    }};
}
pub(super) use put;

/// A whole number in groups of three: `1 234 567`, with spaces that do not break the line.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A whole number in three digits and a unit prefix: `269 k`, `40.6 M`, `4.12 G`. Below 1000 it stays exact.
pub(super) fn short(number: u64) -> String {
    if number < 1000 {
        return number.to_string();
    }
    let prefixes = ["k", "M", "G", "T", "P", "E"];
    let mut value = number as f64 / 1000.0;
    let mut prefix = 0;
    // 999.5 would be written 1000.
    while value >= 999.5 {
        value /= 1000.0;
        prefix += 1;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}\u{202f}{}", prefixes[prefix])
}

/// A number with fixed decimals; what is not finite is named, and minus is a real minus.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        "NaN".to_string()
    } else if value.is_infinite() {
        if value > 0.0 { "∞" } else { "−∞" }.to_string()
    } else if value.abs() >= 1e9 {
        format!("{value:.3e}").replace('-', "−")
    } else {
        let text = format!("{value:.decimals$}");
        // Rounding may leave "-0.00".
        match text.strip_prefix('-') {
            Some(digits) if digits.bytes().all(|byte| matches!(byte, b'0' | b'.')) => digits.to_string(),
            Some(digits) => format!("−{digits}"),
            None => text,
        }
    }
}

/// A number in about four significant digits, for values of unknown size: `0.1`, `0.00025`, `1.2e−7`, `1234`.
pub(super) fn compact(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return fixed(value, 0);
    }
    let magnitude = value.abs().log10().floor();
    let text = if (-5.0..6.0).contains(&magnitude) {
        fixed(value, (3.0 - magnitude).clamp(0.0, 8.0) as usize)
    } else {
        format!("{value:.3e}").replace('-', "−")
    };
    let (mantissa, exponent) = match text.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, format!("e{exponent}")),
        None => (text.as_str(), String::new()),
    };
    let mantissa = match mantissa.contains('.') {
        true => mantissa.trim_end_matches('0').trim_end_matches('.'),
        false => mantissa,
    };
    format!("{mantissa}{exponent}")
}

/// A measurement that may be missing.
pub(super) fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".to_string(), |value| fixed(value, decimals))
}

/// `part / whole` in percent, `None` when the whole is zero.
pub(super) fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

/// A percentage with one decimal, or a dash.
pub(super) fn percent_text(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_string(), |value| format!("{}\u{202f}%", fixed(value, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(Escaped("<b>&\"'\0\u{1b}é").to_string(), "&lt;b&gt;&amp;&quot;&#39;\u{fffd}\u{fffd}é");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        for (number, text) in [
            (999, "999"),
            (1000, "1.00\u{202f}k"),
            (269_722, "270\u{202f}k"),
            (40_551_936, "40.6\u{202f}M"),
            (999_499, "999\u{202f}k"),
            (999_500, "1.00\u{202f}M"),
            (4_089_184_256, "4.09\u{202f}G"),
            (u64::MAX, "18.4\u{202f}E"),
        ] {
            assert_eq!(short(number), text, "{number}");
        }
        for (value, text) in [
            (f64::NAN, "NaN"),
            (f64::INFINITY, "∞"),
            (f64::NEG_INFINITY, "−∞"),
            (-0.001, "0.00"),
            (-1.5, "−1.50"),
            (2e300, "2.000e300"),
        ] {
            assert_eq!(fixed(value, 2), text);
        }
        for (value, text) in [
            (0.1, "0.1"),
            (0.00025, "0.00025"),
            (1.2e-7, "1.2e−7"),
            (0.0, "0"),
            (1234.5678, "1235"),
            (500.0, "500"),
            (3e20, "3e20"),
            (-0.5, "−0.5"),
        ] {
            assert_eq!(compact(value), text);
        }
        assert_eq!(optional(None, 2), "–");
        assert_eq!(percent(1, 0), None);
        assert_eq!(percent_text(percent(1, 8)), "12.5\u{202f}%");
    }
}
