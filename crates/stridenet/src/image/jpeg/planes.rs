//! The samples of a frame's components, and the picture they make.

use super::Problem;
use super::headers::{Component, Frame, Process, Tables};
use crate::kernels::Level;
use crate::kernels::jpeg::{Expansion, inverse_dct, inverted_cmyk_to_rgb, upsample_row, ycc_to_rgb};

/// A component's coefficients and samples.
pub(super) struct Plane {
    /// Columns of blocks.
    columns: usize,
    /// Rows of blocks that are kept: one unit's, or all where several scans make them.
    kept: usize,
    coefficients: Vec<[i16; 64]>,
    /// As it was when the component's first scan began.
    quantisation: Option<[u16; 64]>,
    samples: Vec<u8>,
}

impl Plane {
    pub(super) fn new(component: &Component, process: Process) -> Self {
        let [rows, columns] = component.blocks;
        let kept = match process {
            Process::Sequential => component.sampling[0],
            Process::Progressive => rows,
        };
        Plane {
            columns,
            kept,
            coefficients: vec![[0; 64]; kept * columns],
            quantisation: None,
            samples: vec![0; rows * columns * 64],
        }
    }

    /// Keeps the component's quantisation table, where a scan is its first.
    pub(super) fn begin(&mut self, component: &Component, tables: &Tables) -> Result<(), Problem> {
        if self.quantisation.is_none() {
            let table = tables.quantisation[component.quantisation];
            self.quantisation =
                Some(table.ok_or(Problem::Header("a quantisation table that a component uses"))?);
        }
        Ok(())
    }

    /// The coefficients of a row of blocks.
    #[inline(always)]
    pub(super) fn blocks_mut(&mut self, row: usize) -> &mut [[i16; 64]] {
        &mut self.coefficients[row % self.kept * self.columns..][..self.columns]
    }

    /// Makes samples of a row of blocks.
    pub(super) fn transform(&mut self, level: Level, row: usize) {
        let Some(quantisation) = &self.quantisation else { return };
        let blocks = &self.coefficients[row % self.kept * self.columns..][..self.columns];
        let pitch = self.columns * 8;
        inverse_dct(level, blocks, quantisation, &mut self.samples[row * 8 * pitch..][..8 * pitch], pitch);
    }

    /// Makes samples of all blocks, after the last scan.
    pub(super) fn finish(&mut self, level: Level, process: Process) -> Result<(), Problem> {
        if self.quantisation.is_none() {
            return Err(Problem::Header("a component without a scan"));
        }
        if process == Process::Progressive {
            (0..self.kept).for_each(|row| self.transform(level, row));
        }
        Ok(())
    }

    /// The first `width` samples of a row.
    fn row(&self, row: usize, width: usize) -> &[u8] {
        &self.samples[row * self.columns * 8..][..width]
    }
}

/// What the components are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colours {
    Grey,
    Rgb,
    Ycc,
    /// Inverted, as Adobe stores inks.
    Cmyk,
    /// The same as luma, differences and black.
    Ycck,
}

/// The rules that libjpeg follows: JFIF's marker, else Adobe's, else the components' names.
fn colours(frame: &Frame, tables: &Tables) -> Colours {
    let names: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
    match (names.len(), tables.adobe) {
        (1, _) => Colours::Grey,
        (3, _) if tables.jfif => Colours::Ycc,
        (3, Some(0)) => Colours::Rgb,
        (3, None) if names == *b"RGB" => Colours::Rgb,
        (3, _) => Colours::Ycc,
        (_, Some(2)) => Colours::Ycck,
        _ => Colours::Cmyk,
    }
}

/// How a component's samples become the picture's, and how many of the picture's rows are one of its own.
fn expansion(frame: &Frame, component: &Component) -> Result<(Expansion, usize), Problem> {
    let [down, across] = [0, 1].map(|axis| (frame.most[axis], component.sampling[axis]));
    if down.0 % down.1 != 0 || across.0 % across.1 != 0 {
        return Err(Problem::Unsupported(
            "JPEG whose components' resolutions do not divide each other".into(),
        ));
    }
    let (down, across) = (down.0 / down.1, across.0 / across.1);
    // libjpeg repeats what is too narrow to interpolate.
    let wide = component.size[1] > 2;
    let expansion = match (across, down) {
        (2, 1) if wide => Expansion::Across,
        (1, 2) => Expansion::Down,
        (2, 2) if wide => Expansion::Both,
        _ => Expansion::Repeat(across),
    };
    Ok((expansion, down))
}

/// The picture's channels and samples.
pub(super) fn picture(
    level: Level,
    frame: &Frame,
    tables: &Tables,
    planes: &[Plane],
) -> Result<(usize, Vec<u8>), Problem> {
    let [height, width] = frame.size;
    let colours = colours(frame, tables);
    let channels = if colours == Colours::Grey { 1 } else { 3 };
    let expansions: Vec<(Expansion, usize)> =
        frame.components.iter().map(|component| expansion(frame, component)).collect::<Result<_, _>>()?;
    let mut buffers = vec![vec![0; width]; planes.len()];
    let mut out = vec![0; height * width * channels];
    let mut rgb = vec![0; if colours == Colours::Ycck { width * 3 } else { 0 }];
    for (y, out) in out.chunks_exact_mut(width * channels).enumerate() {
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let (expansion, down) = expansions[index];
            let [rows, columns] = frame.components[index].size;
            let (row, below) = (y / down, y % down == 1);
            let beyond = if below { (row + 1).min(rows - 1) } else { row.saturating_sub(1) };
            if expansion != Expansion::Repeat(1) {
                let rows = [row, beyond].map(|row| planes[index].row(row, columns));
                upsample_row(level, expansion, rows, below, buffer);
            }
        }
        // Full rows are read where they lie.
        let row = |index: usize| match expansions[index] {
            (Expansion::Repeat(1), down) => planes[index].row(y / down, width),
            _ => &buffers[index],
        };
        match colours {
            Colours::Grey => out.copy_from_slice(row(0)),
            Colours::Ycc => ycc_to_rgb(level, [row(0), row(1), row(2)], out),
            Colours::Rgb => {
                let samples = row(0).iter().zip(row(1)).zip(row(2));
                for (pixel, ((&red, &green), &blue)) in out.chunks_exact_mut(3).zip(samples) {
                    pixel.copy_from_slice(&[red, green, blue]);
                }
            }
            Colours::Cmyk => inverted_cmyk_to_rgb([row(0), row(1), row(2), row(3)], out),
            Colours::Ycck => {
                ycc_to_rgb(level, [row(0), row(1), row(2)], &mut rgb);
                let ink = |ink: usize| rgb.iter().skip(ink).step_by(3).map(|sample| 255 - sample).collect();
                let inks: [Vec<u8>; 3] = [ink(0), ink(1), ink(2)];
                inverted_cmyk_to_rgb([&inks[0], &inks[1], &inks[2], row(3)], out);
            }
        }
    }
    Ok((channels, out))
}
