//! A network as a picture.

use super::structure::{Block, BlockShortcut, Head, Structure};
use super::table::{quantity, shape};
use super::{Arch, ArchError, Shortcut};
use std::fmt::{Arguments, Write};

/// The line on which all boxes are centred.
const AXIS: f64 = 155.0;
/// Height of the input's box.
const INPUT_HEIGHT: f64 = 150.0;
/// No box is lower than this.
const MIN_HEIGHT: f64 = 10.0;
/// Width of a box for each doubling of the channels.
const WIDTH_PER_DOUBLING: f64 = 3.0;
/// Space between boxes of one group; shortcuts branch off and join there.
const GAP: f64 = 20.0;
/// Width of the dots that stand for blocks left out.
const DOTS: f64 = 24.0;
/// Space between groups.
const GROUP_GAP: f64 = 34.0;
/// The least width of a group, so that labels do not touch.
const MIN_GROUP: f64 = 86.0;
/// Margin on the left and right.
const MARGIN: f64 = 12.0;
/// Baseline of the first label.
const LABELS: f64 = 264.0;
/// Baseline of the legend.
const LEGEND: f64 = 322.0;
/// Height of the picture.
const HEIGHT: f64 = 336.0;
/// Width of the legend.
const LEGEND_WIDTH: f64 = 480.0;
/// A stage of more blocks is drawn as its first two, dots, and its last.
const MAX_DRAWN: usize = 4;

/// Fill of boxes; can be read on white and on dark ground.
const PLAIN: &str = "#7aa6c2";
/// How text is painted. Attributes, because a style sheet would reach the page around an embedded picture.
const INK: &str = r#"fill="currentColor" stroke="none""#;
/// Dash pattern of an identity shortcut.
const IDENTITY: &str = "none";
/// Dash pattern of a projection.
const PROJECTION: &str = "4 3";
/// Dash pattern of a zero-padded shortcut.
const ZERO_PAD: &str = "1 3";
/// Fill of boxes at which the map shrinks.
const STRIDED: &str = "#e08e45";

impl Arch {
    /// The network as an SVG picture for one image of `input` `[height, width]` pixels.
    ///
    /// A box is a feature map: its height follows the square root of the map's height, its width the
    /// logarithm of the channels. Boxes at which the map shrinks are highlighted and carry their stride. An
    /// arc is a block's shortcut, dashed where it changes shape. Text and lines have `currentColor`, so that
    /// the picture fits a light or a dark page.
    ///
    /// # Errors
    /// As [`summary`](Self::summary).
    pub fn svg(&self, input: [usize; 2]) -> Result<String, ArchError> {
        let summary = self.summary(input)?;
        let title = format!(
            "{}: {} parameters, {} MACs",
            self.name,
            quantity(summary.param_count),
            quantity(summary.macs)
        );
        let mut canvas = Canvas { body: String::new(), x: MARGIN, wire: None, input_rows: input[0] };
        for group in self.groups(input)? {
            canvas.group(&group);
        }
        canvas.legend(self);
        Ok(canvas.finish(&title))
    }

    /// What stands in the picture, from left to right.
    fn groups(&self, input: [usize; 2]) -> Result<Vec<Group>, ArchError> {
        let structure = self.structure()?;
        let image = [self.in_channels, input[0], input[1]];
        let mut groups = vec![Group::new(
            vec![Item::map("input", image, 1)],
            ["input".to_owned(), String::new(), shape(image)],
        )];
        let (stem, mut size) = self.stem_group(&structure, input)?;
        groups.push(stem);
        for blocks in structure.blocks.chunk_by(|a, b| a.stage == b.stage) {
            let mut items = Vec::with_capacity(blocks.len());
            for block in blocks {
                size = block.output_size(size).map_err(ArchError::at(&block.name))?;
                items.push(Item::block(block, size));
            }
            let [height, width] = size;
            let map = [blocks[0].out_channels, height, width];
            let labels =
                [self.stage_name(blocks[0].stage), format!("{} × {}", blocks.len(), self.block), shape(map)];
            groups.push(Group::new(shortened(items), labels));
        }
        groups.push(head_group(&structure.head));
        Ok(groups)
    }

    /// The stem's maps, and the size of its output.
    fn stem_group(&self, structure: &Structure, input: [usize; 2]) -> Result<(Group, [usize; 2]), ArchError> {
        let (mut items, mut size) = (Vec::new(), input);
        for unit in &structure.stem {
            let channels = unit.geometry.out_channels;
            size = unit.geometry.output_size(size).map_err(ArchError::at(&unit.conv))?;
            items.push(Item::map(&unit.conv, [channels, size[0], size[1]], unit.geometry.stride[0]));
            for pool in &unit.pools {
                size = pool.output(size).map_err(ArchError::at(&unit.conv))?;
                items.push(Item::map("maxpool", [channels, size[0], size[1]], pool.window().stride));
            }
        }
        let map = [self.stem_width, size[0], size[1]];
        let labels = ["stem".to_owned(), self.stem.to_string(), shape(map)];
        Ok((Group::new(items, labels), size))
    }
}

/// Boxes with labels under them.
struct Group {
    items: Vec<Item>,
    labels: [String; 3],
}

/// Something on the axis.
enum Item {
    /// A feature map.
    Map {
        /// `[C, H, W]`.
        shape: [usize; 3],
        /// By how much the map shrank on the way here.
        stride: usize,
        /// What the pointer's tooltip says.
        title: String,
        /// The dash pattern of the shortcut that leads around, where there is one.
        shortcut: Option<&'static str>,
    },
    /// Dots for blocks left out.
    Dots,
}

impl Group {
    fn new(items: Vec<Item>, labels: [String; 3]) -> Self {
        Group { items, labels }
    }

    /// Width of the boxes and the gaps between them.
    fn width(&self) -> f64 {
        self.items.iter().map(Item::width).sum::<f64>() + GAP * (self.items.len() - 1) as f64
    }
}

impl Item {
    fn map(name: &str, map: [usize; 3], stride: usize) -> Self {
        Item::Map { shape: map, stride, title: format!("{name}: {}", shape(map)), shortcut: None }
    }

    fn block(block: &Block, [height, width]: [usize; 2]) -> Self {
        let map = [block.out_channels, height, width];
        let (dashes, shortcut) = match block.shortcut {
            BlockShortcut::Identity => (IDENTITY, "identity"),
            BlockShortcut::Projection { pool: None, .. } => (PROJECTION, "projection"),
            BlockShortcut::Projection { pool: Some(_), .. } => (PROJECTION, "avg-projection"),
            BlockShortcut::ZeroPad { .. } => (ZERO_PAD, "zero-pad"),
        };
        let title = format!("{}: {}, stride {}, {shortcut}", block.name, shape(map), block.stride);
        Item::Map { shape: map, stride: block.stride, title, shortcut: Some(dashes) }
    }

    fn width(&self) -> f64 {
        match self {
            Item::Map { shape: [channels, ..], .. } => WIDTH_PER_DOUBLING * (*channels as f64 + 1.0).log2(),
            Item::Dots => DOTS,
        }
    }
}

fn head_group(head: &Head) -> Group {
    let pooled = Item::map("global_pool", [head.in_features, 1, 1], 1);
    let logits = Item::map(&head.name, [head.out_features, 1, 1], 1);
    let labels = ["head".to_owned(), "mean, linear".to_owned(), format!("{} classes", head.out_features)];
    Group::new(vec![pooled, logits], labels)
}

/// The items, or the first two, dots and the last, if there are many.
fn shortened(mut items: Vec<Item>) -> Vec<Item> {
    if items.len() > MAX_DRAWN {
        let last = items.len() - 1;
        items.splice(2..last, [Item::Dots]);
    }
    items
}

/// What has been drawn so far, from left to right.
struct Canvas {
    body: String,
    /// Where the next group may begin.
    x: f64,
    /// Where the last box ended, and the line to the next one begins.
    wire: Option<f64>,
    /// Height of the input in pixels.
    input_rows: usize,
}

impl Canvas {
    fn element(&mut self, element: Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    fn text(&mut self, x: f64, y: f64, size: u32, text: &str) {
        let text = escape(text);
        self.element(format_args!(r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" {INK}>{text}</text>"#));
    }

    fn line(&mut self, from: f64, to: f64) {
        self.element(format_args!(r#"<path d="M{from:.1} {AXIS}H{to:.1}"/>"#));
    }

    fn rect(&mut self, x: f64, [width, height]: [f64; 2], fill: &str, title: &str) {
        let (y, title) = (AXIS - height / 2.0, escape(title));
        self.element(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{fill}"><title>{title}</title></rect>"#
        ));
    }

    fn group(&mut self, group: &Group) {
        let slot = group.width().max(MIN_GROUP);
        let middle = self.x + slot / 2.0;
        let mut x = middle - group.width() / 2.0;
        if let Some(end) = self.wire {
            self.line(end, x);
        }
        for (number, item) in group.items.iter().enumerate() {
            if number > 0 {
                self.line(x, x + GAP);
                x += GAP;
            }
            self.item(x, item);
            x += item.width();
        }
        for ((number, label), size) in group.labels.iter().enumerate().zip([13, 11, 11]) {
            self.text(middle, LABELS + 15.0 * number as f64, size, label);
        }
        self.wire = Some(x);
        self.x += slot + GROUP_GAP;
    }

    /// An item with its left end at `x`.
    fn item(&mut self, x: f64, item: &Item) {
        let width = item.width();
        match item {
            Item::Dots => self.text(x + width / 2.0, AXIS + 4.0, 16, "…"),
            Item::Map { shape: [_, rows, _], stride, title, shortcut } => {
                let share = (*rows as f64 / self.input_rows as f64).sqrt();
                let height = (INPUT_HEIGHT * share).max(MIN_HEIGHT);
                let fill = if *stride > 1 { STRIDED } else { PLAIN };
                self.rect(x, [width, height], fill, title);
                if *stride > 1 {
                    self.text(x + width / 2.0, AXIS + height / 2.0 + 13.0, 11, &format!("/{stride}"));
                }
                if let Some(dashes) = shortcut {
                    self.arc(x, [width, height], dashes);
                }
            }
        }
    }

    /// A shortcut around a box: from the middle of the gap before it to the middle of the gap behind.
    fn arc(&mut self, x: f64, [width, height]: [f64; 2], dashes: &str) {
        let (from, to) = (x - 0.4 * GAP, x + width + 0.4 * GAP);
        // A cubic with both controls at this height passes the box's corners at about 0.6 of it.
        let control = AXIS - (height / 2.0 + 6.0) / 0.6;
        self.element(format_args!(
            r#"<path d="M{from:.1} {AXIS}C{from:.1} {control:.1} {to:.1} {control:.1} {to:.1} {AXIS}" stroke-dasharray="{dashes}"/>"#
        ));
    }

    fn legend(&mut self, arch: &Arch) {
        let y = LEGEND - 4.0;
        let Arch { downsample, shortcut, .. } = arch;
        let dashes = match shortcut {
            Shortcut::Projection | Shortcut::AvgProjection => PROJECTION,
            Shortcut::ZeroPad => ZERO_PAD,
        };
        self.element(format_args!(
            r#"<g text-anchor="start" font-size="11">
<rect x="{MARGIN}" y="{:.1}" width="10" height="10" rx="2" fill="{STRIDED}"/><text x="{:.1}" y="{LEGEND}" {INK}>the map shrinks: {downsample}</text>
<path d="M185 {y}h24"/><text x="214" y="{LEGEND}" {INK}>identity shortcut</text>
<path d="M325 {y}h24" stroke-dasharray="{dashes}"/><text x="354" y="{LEGEND}" {INK}>{shortcut} shortcut</text>
</g>"#,
            y - 5.0,
            MARGIN + 15.0
        ));
    }

    fn finish(self, title: &str) -> String {
        let width = (self.x - GROUP_GAP + MARGIN).max(LEGEND_WIDTH);
        let title = escape(title);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {HEIGHT}"
 width="{width:.0}" height="{HEIGHT}" role="img" font-family="system-ui, sans-serif"
 fill="none" stroke="currentColor" stroke-width="1">
<title>{title}</title>
<g text-anchor="middle">
<text x="{:.1}" y="22" font-size="15" {INK}>{title}</text>
{}</g>
</svg>
"#,
            width / 2.0,
            self.body
        )
    }
}

/// Text that is safe inside an element or attribute.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Stage, preset_names};

    fn svg(arch: &Arch) -> String {
        arch.svg(arch.img_size).unwrap()
    }

    /// Values of `attribute` in lines that begin with `element`.
    fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
        let start = format!(" {attribute}=\"");
        svg.lines()
            .filter(|line| line.starts_with(element) && line.contains("<title>"))
            .filter_map(|line| line.split_once(&start)?.1.split('"').next()?.parse().ok())
            .collect()
    }

    #[test]
    fn boxes_follow_the_maps() {
        let svg = svg(&Arch::preset("resnet18").unwrap());
        let heights = numbers(&svg, "<rect", "height");
        // Input, stem (2), four stages of two blocks, pooled features and logits.
        assert_eq!(heights.len(), 1 + 2 + 8 + 2);
        assert_eq!(heights[0], 150.0);
        assert_eq!(heights[3], 75.0, "56 of 224 rows");
        assert!(heights[..11].windows(2).all(|pair| pair[0] >= pair[1]));
        let widths = numbers(&svg, "<rect", "width");
        assert!(widths[..11].windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(svg.matches(&format!("fill=\"{STRIDED}\"><title>")).count(), 2 + 3);
        assert!(svg.contains("<title>layer2.0: 128×28×28, stride 2, projection</title>"));
        assert!(svg.contains(">resnet18: 11.69 M parameters, 1.814 G MACs<"));
    }

    #[test]
    fn boxes_stand_inside_the_picture_and_apart() {
        for name in preset_names() {
            let svg = svg(&Arch::preset(name).unwrap());
            let left = numbers(&svg, "<rect", "x");
            let widths = numbers(&svg, "<rect", "width");
            let ends: Vec<f64> = left.iter().zip(&widths).map(|(x, width)| x + width).collect();
            assert!(left.iter().skip(1).zip(&ends).all(|(next, end)| next - end >= GAP - 0.2), "{name}");
            let total: f64 =
                svg.split("viewBox=\"0 0 ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert!(left[0] >= MARGIN && ends[ends.len() - 1] <= total - MARGIN + 1.0, "{name}");
            assert!(numbers(&svg, "<rect", "y").iter().all(|&y| y >= AXIS - INPUT_HEIGHT / 2.0));
        }
    }

    #[test]
    fn deep_stages_are_shortened() {
        let svg = svg(&Arch::preset("resnet110").unwrap());
        assert_eq!(svg.matches('…').count(), 3);
        assert!(svg.contains("18 × basic"));
        assert!(svg.contains("<title>layer3.17: ") && !svg.contains("<title>layer3.16: "));
        assert!(svg.len() < 20_000);
    }

    #[test]
    fn names_cannot_leave_their_element() {
        let arch = Arch { name: "<script>\"&".to_owned(), ..Arch::preset("resnet20").unwrap() };
        let svg = svg(&arch);
        assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;&quot;&amp;: "), "{svg}");
    }

    #[test]
    fn the_smallest_and_widest_networks_are_drawn() {
        let stages = vec![Stage { blocks: 1, width: 1, stride: 16 }; 32];
        let arch = Arch {
            stages,
            stem_width: 1,
            in_channels: 1,
            num_classes: 1,
            ..Arch::preset("resnet20").unwrap()
        };
        let svg = arch.svg([1, 1]).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(arch.svg([0, 1]).is_err());
    }
}
