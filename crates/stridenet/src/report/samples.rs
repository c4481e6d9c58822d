//! A few images with what the model says about them.

use super::layers::put_meter;
use super::markup::{Escaped, fixed, put};
use super::{Report, SamplePrediction};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// Small images are enlarged by a whole factor up to this many CSS pixels.
const SHOWN_SIDE: usize = 160;
/// How many classes are shown for an image.
const TOP: usize = 3;

/// Writes the section's content.
pub(super) fn put_samples(html: &mut String, report: &Report) {
    html.push_str("<ul class=\"samples\">\n");
    for sample in &report.samples {
        let mut ranked = sample.predictions.clone();
        // What is not a number ranks last, and equal probabilities keep their order.
        let key = |probability: f32| if probability.is_nan() { f32::NEG_INFINITY } else { probability };
        ranked.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)));
        ranked.truncate(TOP);
        let truth = report.label(sample.truth);
        html.push_str("<li><div class=\"picture\">");
        put_picture(html, sample, &truth);
        let (class, verdict) = match ranked.first() {
            Some((class, _)) if *class == sample.truth => ("right", "✓ correct"),
            Some(_) => ("wrong", "✗ wrong"),
            None => ("none", "no prediction"),
        };
        put!(html, "</div>\n<p class=\"verdict {class}\">{verdict}</p>");
        put!(html, "<p class=\"truth\">Truth: <b>{}</b></p>\n", Escaped(&truth));
        if !ranked.is_empty() {
            html.push_str("<ol>");
            for (class, probability) in ranked {
                let percent = f64::from(probability) * 100.0;
                let mark = if class == sample.truth { " class=\"true\"" } else { "" };
                // A long name is cut by the style sheet.
                put!(html, "<li{mark}><span title=\"{0}\">{0}</span>", Escaped(&report.label(class)));
                put!(html, "<span class=\"n\">{}\u{202f}%</span>", fixed(percent, 1));
                put_meter(html, percent);
                html.push_str("</li>");
            }
            html.push_str("</ol>");
        }
        html.push_str("</li>\n");
    }
    html.push_str("</ul>\n");
}

fn put_picture(html: &mut String, sample: &SamplePrediction, truth: &str) {
    match png(sample) {
        Ok(bytes) => {
            let longer = sample.height.max(sample.width);
            let scale = (SHOWN_SIDE / longer.max(1)).max(1);
            let (width, height) = (sample.width * scale, sample.height * scale);
            let class = if scale > 1 { " class=\"enlarged\"" } else { "" };
            put!(
                html,
                "<img{class} width=\"{width}\" height=\"{height}\" alt=\"{}\" src=\"data:image/png;base64,{}\"/>",
                Escaped(truth),
                STANDARD.encode(bytes)
            );
        }
        Err(reason) => put!(html, "<p class=\"note\">The image cannot be shown: {}.</p>", Escaped(&reason)),
    }
}

/// The image as PNG, or why there is none.
fn png(sample: &SamplePrediction) -> Result<Vec<u8>, String> {
    let SamplePrediction { height, width, channels, .. } = *sample;
    let colour = match channels {
        1 => ExtendedColorType::L8,
        2 => ExtendedColorType::La8,
        3 => ExtendedColorType::Rgb8,
        4 => ExtendedColorType::Rgba8,
        other => return Err(format!("{other} channels, expected 1 to 4")),
    };
    let needed = height.checked_mul(width).and_then(|area| area.checked_mul(channels));
    let found = sample.pixels.len();
    if needed != Some(found) || found == 0 {
        return Err(format!("its shape is {height}×{width}×{channels}, but it has {found} bytes"));
    }
    let too_large = |_| format!("{height}×{width} is too large");
    let (columns, rows) =
        (u32::try_from(width).map_err(too_large)?, u32::try_from(height).map_err(too_large)?);
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(&sample.pixels, columns, rows, colour)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html(sample: SamplePrediction) -> String {
        let labels = ["cat", "<dog>", "crane", "crane"].map(String::from).to_vec();
        let mut html = String::new();
        put_samples(&mut html, &Report { labels, samples: vec![sample], ..Report::default() });
        crate::report::well_formed::check(&html).unwrap();
        html
    }

    #[test]
    fn the_embedded_png_holds_the_same_pixels() {
        for channels in 1..=4 {
            let pixels: Vec<u8> = (0..5 * 4 * channels).map(|index| (index * 37 % 251) as u8).collect();
            let html = html(SamplePrediction {
                height: 5,
                width: 4,
                channels,
                pixels: pixels.clone(),
                ..Default::default()
            });
            let data =
                html.split("data:image/png;base64,").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
            let decoded = image::load_from_memory(&STANDARD.decode(data).unwrap()).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (4, 5));
            let decoded = match channels {
                1 => decoded.to_luma8().into_raw(),
                2 => decoded.to_luma_alpha8().into_raw(),
                3 => decoded.to_rgb8().into_raw(),
                _ => decoded.to_rgba8().into_raw(),
            };
            assert_eq!(decoded, pixels);
            assert!(html.contains("width=\"128\" height=\"160\""), "32 times as large: {html}");
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_is_said() {
        for (height, width, channels, bytes) in
            [(2, 2, 3, 11), (0, 0, 3, 0), (2, 2, 5, 20), (2, 2, 4, 15), (usize::MAX, 2, 3, 6), (2, 2, 0, 0)]
        {
            let pixels = vec![0; bytes];
            let html = html(SamplePrediction { height, width, channels, pixels, ..Default::default() });
            assert!(html.contains("cannot be shown") && !html.contains("<img"), "{html}");
        }
    }

    #[test]
    fn the_three_most_probable_are_ranked_and_judged_by_class_not_name() {
        let sample = |truth, predictions: &[(usize, f32)]| SamplePrediction {
            truth,
            predictions: predictions.to_vec(),
            ..SamplePrediction::default()
        };
        let shown = html(sample(1, &[(9, f32::NAN), (0, 0.1), (1, 0.7), (2, 0.2)]));
        assert!(shown.contains("✓ correct") && shown.contains("&lt;dog&gt;"));
        let order: Vec<_> =
            ["&lt;dog&gt;</span>", "crane</span>", "cat</span>"].map(|name| shown.find(name)).to_vec();
        assert!(order.is_sorted() && order[0].is_some() && !shown.contains("class 9"), "{shown}");
        assert!(html(sample(2, &[(3, 0.9), (2, 0.1)])).contains("✗ wrong"), "another class of the same name");
        assert!(html(sample(0, &[])).contains("no prediction"));
        assert!(html(sample(7, &[(7, f32::NAN)])).contains("NaN\u{202f}%"));
    }
}
