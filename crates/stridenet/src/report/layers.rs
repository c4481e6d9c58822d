//! The section on the network: its drawing, its stages and all its layers.

use super::markup::{Escaped, grouped, percent, percent_text, put, short};
use super::{LayerRow, Report};

/// A table with at most this many layers starts open.
const FEW_LAYERS: usize = 24;

/// Writes the section's content.
pub(super) fn put_network(html: &mut String, report: &Report) {
    // HTML has no place for the XML declaration and document type that may stand before the element.
    let drawing = report.drawing.as_deref().and_then(|drawing| drawing.get(drawing.find("<svg")?..));
    if let Some(drawing) = drawing {
        put!(
            html,
            "<figure class=\"drawing scroll\" role=\"region\" aria-label=\"Drawing of the network\" tabindex=\"0\">\n\
             {drawing}</figure>\n"
        );
    }
    if report.layers.is_empty() {
        return;
    }
    if report.layers.iter().any(|layer| layer.stride > 1) {
        html.push_str("<p class=\"note\"><b class=\"stride\">↓</b> marks layers that shrink the map by their stride.</p>\n");
    }
    let stages = stages(&report.layers);
    if stages.len() > 1 && stages.len() < report.layers.len() {
        put_stages(html, &stages, &report.layers);
    }
    put_layers(html, &report.layers);
}

/// Neighbouring layers that share the first part of their name.
fn stages(layers: &[LayerRow]) -> Vec<&[LayerRow]> {
    layers.chunk_by(|a, b| stage_name(a) == stage_name(b)).collect()
}

fn stage_name(layer: &LayerRow) -> &str {
    layer.name.split('.').next().unwrap_or(&layer.name)
}

fn parameters(layers: &[LayerRow]) -> u64 {
    layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.parameters))
}

fn macs(layers: &[LayerRow]) -> u64 {
    layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.macs))
}

fn put_stages(html: &mut String, stages: &[&[LayerRow]], layers: &[LayerRow]) {
    html.push_str(
        "<div class=\"scroll\" role=\"region\" aria-label=\"Stages\" tabindex=\"0\"><table>\n<caption>Stages</caption>\n\
         <thead><tr><th scope=\"col\">Stage</th><th scope=\"col\" class=\"n\">Layers</th><th scope=\"col\">Output</th>\
         <th scope=\"col\" class=\"n\">Stride</th><th scope=\"col\" class=\"n\">Parameters</th>\
         <th scope=\"col\">Share</th><th scope=\"col\" class=\"n\">MACs</th><th scope=\"col\">Share</th></tr></thead>\n<tbody>\n",
    );
    let (all_parameters, all_macs) = (parameters(layers), macs(layers));
    for stage in stages {
        let (Some(first), Some(last)) = (stage.first(), stage.last()) else { continue };
        // A block's shortcut strides beside its main path, so the strides of a stage do not multiply.
        let stride = stage.iter().map(|layer| layer.stride).max().unwrap_or(1);
        put!(html, "<tr{}><th scope=\"row\">{}</th>", strided(stride), Escaped(stage_name(first)));
        put!(html, "<td class=\"n\">{}</td><td>{}</td>", stage.len(), Escaped(&last.output));
        put_stride(html, stride);
        for (part, whole) in [(parameters(stage), all_parameters), (macs(stage), all_macs)] {
            let share = percent(part, whole);
            put!(html, "<td class=\"n\">{}</td><td class=\"share\">", short(part));
            put_meter(html, share.unwrap_or(0.0));
            put!(html, "{}</td>", percent_text(share));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
}

fn put_layers(html: &mut String, layers: &[LayerRow]) {
    let open = if layers.len() <= FEW_LAYERS { " open=\"open\"" } else { "" };
    put!(html, "<details{open}><summary>All layers ({})</summary>\n", layers.len());
    html.push_str(
        "<div class=\"scroll tall\" role=\"region\" aria-label=\"All layers\" tabindex=\"0\"><table>\n\
         <thead><tr><th scope=\"col\">Layer</th><th scope=\"col\">Kind</th><th scope=\"col\">Input</th>\
         <th scope=\"col\">Output</th><th scope=\"col\" class=\"n\">Kernel</th><th scope=\"col\" class=\"n\">Stride</th>\
         <th scope=\"col\" class=\"n\">Parameters</th><th scope=\"col\" class=\"n\">MACs</th>\
         <th scope=\"col\" class=\"n\">Receptive field</th></tr></thead>\n<tbody>\n",
    );
    for layer in layers {
        put!(html, "<tr{}><th scope=\"row\">{}</th>", strided(layer.stride), Escaped(&layer.name));
        for text in [&layer.kind, &layer.input, &layer.output] {
            put!(html, "<td>{}</td>", Escaped(text));
        }
        put!(
            html,
            "<td class=\"n\">{}</td>",
            layer.kernel.map_or_else(|| "–".into(), |side| format!("{side}×{side}"))
        );
        put_stride(html, layer.stride);
        put!(
            html,
            "<td class=\"n\">{}</td><td class=\"n\">{}</td>",
            grouped(layer.parameters),
            short(layer.macs)
        );
        let field = layer.receptive_field.map_or_else(|| "–".into(), |side| side.to_string());
        put!(html, "<td class=\"n\">{field}</td></tr>\n");
    }
    put!(
        html,
        "</tbody>\n<tfoot><tr><th scope=\"row\" colspan=\"6\">Total</th><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td></td></tr></tfoot>\n</table></div></details>\n",
        grouped(parameters(layers)),
        short(macs(layers))
    );
}

fn strided(stride: usize) -> &'static str {
    if stride > 1 { " class=\"strided\"" } else { "" }
}

fn put_stride(html: &mut String, stride: usize) {
    match stride {
        0 | 1 => put!(html, "<td class=\"n\">{stride}</td>"),
        _ => put!(html, "<td class=\"n\"><b class=\"stride\">↓ {stride}</b></td>"),
    }
}

/// A horizontal bar filled to a percentage; the number stands beside it as text.
pub(super) fn put_meter(html: &mut String, percent: f64) {
    let width = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
    put!(html, "<span class=\"meter\" aria-hidden=\"true\"><i style=\"width:{width:.1}%\"></i></span>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, stride: usize, parameters: u64) -> LayerRow {
        LayerRow {
            name: name.into(),
            stride,
            parameters,
            macs: parameters.saturating_mul(10),
            ..LayerRow::default()
        }
    }

    #[test]
    fn layers_group_into_stages_by_their_first_name() {
        let layers = ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "fc"]
            .map(|name| layer(name, 1, 1));
        let names: Vec<_> =
            stages(&layers).iter().map(|stage| (stage_name(&stage[0]), stage.len())).collect();
        assert_eq!(names, [("conv1", 1), ("layer1", 2), ("layer2", 1), ("fc", 1)]);
    }

    #[test]
    fn strides_are_marked_in_words_and_totals_add_up() {
        let layers = vec![layer("a.0", 1, 400), layer("a.1", 2, 600), layer("b", 1, u64::MAX)];
        let mut report = Report { layers, ..Report::default() };
        let mut html = String::new();
        put_network(&mut html, &report);
        assert_eq!(html.matches("↓ 2</b></td>").count(), 2, "in its stage and in its row: {html}");
        assert_eq!(html.matches("class=\"strided\"").count(), 2);
        assert!(html.contains("<caption>Stages"));
        report.layers.truncate(2);
        html.clear();
        put_network(&mut html, &report);
        assert!(!html.contains("<caption>Stages"), "one stage needs no table");
        assert!(
            html.contains("<td class=\"n\">1\u{202f}000</td><td class=\"n\">10.0\u{202f}k</td>"),
            "{html}"
        );
    }

    #[test]
    fn the_drawing_stands_in_the_page_as_it_is() {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"><title>a &amp; b</title></svg>";
        for prologue in ["", "<?xml version=\"1.0\"?>\n<!DOCTYPE svg>\n"] {
            let mut html = String::new();
            put_network(
                &mut html,
                &Report { drawing: Some(format!("{prologue}{svg}")), ..Report::default() },
            );
            crate::report::well_formed::check(&html).unwrap();
            assert!(html.contains(svg), "{html}");
        }
    }

    #[test]
    fn a_deep_network_starts_closed() {
        let shown = |count: usize| {
            let layers = (0..count).map(|index| layer(&format!("layer{index}"), 1, 1)).collect();
            let mut html = String::new();
            put_network(&mut html, &Report { layers, ..Report::default() });
            html.contains("<details open")
        };
        assert!(shown(FEW_LAYERS) && !shown(FEW_LAYERS + 1));
    }
}
