//! Puts the sections together into one document.

use super::chart::LineChart;
use super::markup::{Escaped, fixed, grouped, optional, put};
use super::{EpochRow, Evaluation, Report, confusion, layers, samples, training};

/// No script, no request: the browser itself holds the page to it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// One section of the page.
struct Section {
    id: &'static str,
    heading: &'static str,
    content: String,
}

/// The whole document.
pub(super) fn page(report: &Report) -> String {
    let sections = sections(report);
    let mut html = String::new();
    put!(
        &mut html,
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{}</title>\n<link rel=\"icon\" href=\"data:,\"/>\n<style>\n{}{}</style>\n</head>\n<body>\n",
        Escaped(POLICY),
        Escaped(&report.title),
        LineChart::CSS,
        include_str!("page.css")
    );
    put_header(&mut html, report, &sections);
    html.push_str("<main>\n");
    for Section { id, heading, content } in &sections {
        put!(&mut html, "<section id=\"{id}\" aria-labelledby=\"{id}-heading\">\n");
        put!(&mut html, "<h2 id=\"{id}-heading\">{heading}</h2>\n{content}</section>\n");
    }
    let version = env!("CARGO_PKG_VERSION");
    put!(&mut html, "</main>\n<footer><p>Written by stridenet {version}</p></footer>\n</body>\n</html>\n");
    html
}

/// The sections there is something to show in.
fn sections(report: &Report) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut add = |id, heading, present: bool, put: &dyn Fn(&mut String)| {
        if present {
            let mut content = String::new();
            put(&mut content);
            sections.push(Section { id, heading, content });
        }
    };
    add("training", "Training", !report.epochs.is_empty(), &|html| training::put_training(html, report));
    if let Some(matrix) = &report.confusion {
        add("confusion", "Confusions", true, &|html| confusion::put_confusion(html, report, &matrix.counts));
    }
    add("samples", "Sample predictions", !report.samples.is_empty(), &|html| {
        samples::put_samples(html, report)
    });
    let network = report.drawing.is_some() || !report.layers.is_empty();
    add("network", "Network", network, &|html| layers::put_network(html, report));
    add("options", "Options", !report.options.is_empty(), &|html| {
        put_pairs(html, "options", &report.options)
    });
    sections
}

fn put_header(html: &mut String, report: &Report, sections: &[Section]) {
    put!(html, "<header>\n<h1>{}</h1>\n", Escaped(&report.title));
    for line in &report.subtitle {
        put!(html, "<p class=\"subtitle\">{}</p>\n", Escaped(line));
    }
    if let Some(result) = &report.result {
        put_result(html, result);
    } else if let Some(best) = report.best_row() {
        put_best(html, best);
    }
    if !report.facts.is_empty() {
        put_pairs(html, "facts", &report.facts);
    }
    if sections.len() > 1 {
        html.push_str("<nav aria-label=\"Sections\">");
        for Section { id, heading, .. } in sections {
            put!(html, "<a href=\"#{id}\">{heading}</a>");
        }
        html.push_str("</nav>\n");
    }
    html.push_str("</header>\n");
}

fn put_result(html: &mut String, result: &Evaluation) {
    put_value(html, result.top1);
    let images = if result.count == 1 { "image" } else { "images" };
    put!(html, "<p>top-1 accuracy on {} {} {images}", grouped(result.count), Escaped(&result.split));
    let [low, high] = result.top1_interval.map(|bound| fixed(bound, 2));
    put!(html, "<span class=\"more\">95\u{202f}% interval {low} to {high}\u{202f}%");
    if result.top5.is_some() {
        put!(html, " · top-5 {}\u{202f}%", optional(result.top5, 2));
    }
    put!(html, " · loss {}</span></p></div>\n", fixed(result.loss, 4));
}

/// The headline of a run whose best model was not evaluated by itself.
fn put_best(html: &mut String, best: &EpochRow) {
    let Some(top1) = best.val_top1 else { return };
    put_value(html, top1);
    put!(html, "<p>top-1 accuracy on validation images<span class=\"more\">best epoch {}", best.epoch);
    if best.val_top5.is_some() {
        put!(html, " · top-5 {}\u{202f}%", optional(best.val_top5, 2));
    }
    if best.val_loss.is_some() {
        put!(html, " · loss {}", optional(best.val_loss, 4));
    }
    html.push_str("</span></p></div>\n");
}

/// Opens the headline with its number.
fn put_value(html: &mut String, top1: f64) {
    put!(html, "<div class=\"result\"><div class=\"value\">{}", fixed(top1, 2));
    html.push_str("<small>\u{202f}%</small></div>\n");
}

/// Names with their values.
fn put_pairs(html: &mut String, class: &str, pairs: &[(String, String)]) {
    put!(html, "<dl class=\"{class}\">\n");
    for (name, value) in pairs {
        put!(html, "<div><dt>{}</dt><dd>{}</dd></div>\n", Escaped(name), Escaped(value));
    }
    html.push_str("</dl>\n");
}

#[cfg(test)]
mod tests {
    use crate::report::well_formed::check;
    use crate::report::{Confusion, EpochRow, Evaluation, LayerRow, Report, SamplePrediction};

    const HOSTILE: &str = "</script></style></table><b onload=\"x\">&\"'\u{0}\u{1b}]]>--><!--é日本";

    /// A report with every part present and hostile text wherever text can stand.
    fn hostile(classes: usize) -> Report {
        let text = || HOSTILE.to_string();
        Report {
            title: text(),
            subtitle: vec![text()],
            result: Some(Evaluation {
                split: text(),
                top1: f64::NAN,
                top5: Some(f64::INFINITY),
                ..Default::default()
            }),
            facts: vec![(text(), text())],
            epochs: vec![EpochRow {
                epoch: usize::MAX,
                train_loss: f64::NAN,
                lr: -1.0,
                ..Default::default()
            }],
            best_epoch: Some(usize::MAX),
            layers: vec![LayerRow {
                name: text(),
                kind: text(),
                input: text(),
                output: text(),
                ..Default::default()
            }],
            drawing: Some("<svg><title>network</title></svg>".into()),
            labels: vec![text(); classes],
            confusion: Some(Confusion { counts: vec![vec![1; classes]; classes] }),
            samples: vec![SamplePrediction {
                predictions: vec![(0, 0.5), (usize::MAX, 2.0)],
                ..Default::default()
            }],
            options: vec![(text(), text())],
        }
    }

    #[test]
    fn nothing_in_the_input_can_change_the_page() {
        for classes in [0, 1, 20, 40, 41] {
            let html = hostile(classes).to_html();
            check(&html).unwrap();
            assert!(!html.contains("<script") && !html.contains("<b onload"), "{classes}");
            assert_eq!(html.matches("</style>").count(), 1);
        }
    }

    #[test]
    fn the_page_asks_the_network_for_nothing() {
        let html = hostile(3).to_html();
        for (index, _) in html.match_indices("://") {
            let start = html[..index].rfind('"').unwrap();
            let value = html[start + 1..].split('"').next().unwrap();
            let namespace = ["http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"].contains(&value);
            assert!(namespace, "an address in the page: {value}");
        }
        for attribute in ["src=\"", "href=\""] {
            for rest in html.split(attribute).skip(1) {
                assert!(rest.starts_with("data:") || rest.starts_with('#'), "{attribute}{rest:.60}");
            }
        }
        assert!(!html.contains("url(") && !html.contains("@import"));
        assert!(html.contains("default-src &#39;none&#39;"));
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let html = Report { title: "empty".into(), ..Report::default() }.to_html();
        check(&html).unwrap();
        assert!(!html.contains("<section") && !html.contains("<nav") && !html.contains("class=\"result\""));
        let html = hostile(3).to_html();
        for id in ["training", "confusion", "samples", "network", "options"] {
            assert!(
                html.contains(&format!("<section id=\"{id}\"")) && html.contains(&format!("href=\"#{id}\""))
            );
        }
    }

    #[test]
    fn the_headline_is_the_accuracy_with_its_interval() {
        let result = Evaluation {
            split: "validation".into(),
            count: 10_000,
            top1: 91.724,
            top1_interval: [91.17, 92.25],
            top5: None,
            loss: 0.31,
        };
        let html = Report { result: Some(result), ..Report::default() }.to_html();
        assert!(html.contains("<div class=\"value\">91.72<small>"));
        assert!(html.contains("on 10\u{202f}000 validation images"));
        assert!(html.contains("interval 91.17 to 92.25\u{202f}%") && !html.contains("top-5"));
    }

    #[test]
    fn without_an_evaluation_the_best_epoch_is_the_headline() {
        let rows = [(1, Some(60.0)), (2, Some(71.25)), (3, Some(70.0))];
        let epochs =
            rows.map(|(epoch, val_top1)| EpochRow { epoch, val_top1, ..Default::default() }).to_vec();
        let mut report = Report { epochs, best_epoch: Some(2), ..Report::default() };
        let html = report.to_html();
        check(&html).unwrap();
        assert!(html.contains("<div class=\"value\">71.25<small>") && html.contains("best epoch 2</span>"));
        report.epochs[1].val_top1 = None;
        assert!(!report.to_html().contains("class=\"value\""), "nothing was measured");
    }

    #[test]
    fn equal_reports_give_equal_bytes_in_reasonable_size() {
        let mut report = hostile(40);
        report.epochs =
            (0..300).map(|epoch| EpochRow { epoch, train_loss: 1.0, ..Default::default() }).collect();
        let html = report.to_html();
        check(&html).unwrap();
        assert_eq!(html, report.clone().to_html());
        assert!(html.len() < 2_000_000, "{}", html.len());
    }
}
