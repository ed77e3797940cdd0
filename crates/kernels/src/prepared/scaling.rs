//! The scales and zero points of a panel as loops over codes take them.
#![allow(unsafe_code, reason = "vector instructions")]

use std::ops::Range;

use moekit_quant::ScaleFormat;

use super::layout::{Grid, Layout};
use crate::Isa;
use crate::simd::{LANES, Op, Simd};

/// Groups of input features that share scales and zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grouping {
    /// Features of a group.
    pub(crate) group: usize,
    /// Where in its group the first feature lies.
    phase: usize,
    features: usize,
}

impl Grouping {
    /// Whether there is one group.
    pub(crate) fn is_one(self) -> bool {
        self.phase + self.features <= self.group
    }

    /// The groups that some features lie in.
    fn groups(self, features: &Range<usize>) -> Range<usize> {
        let first = (features.start + self.phase) / self.group;
        first..(features.end + self.phase).div_ceil(self.group)
    }

    /// Features from one on up to the end of its group.
    pub(crate) fn rest(self, feature: usize) -> usize {
        self.group - (feature + self.phase) % self.group
    }
}

impl Layout {
    /// The groups of features; `None` if some begin within `step` features, or zero points have
    /// others than scales.
    pub(crate) fn grouping(&self, step: usize) -> Option<Grouping> {
        let features = self.features();
        let of = |grid: Option<Grid>| match grid.filter(|g| g.phase + self.cols > g.group) {
            Some(grid) => (grid.group, grid.phase),
            None => (features, 0),
        };
        let (scales, zero_points) = (of(self.scales), of(self.zero_points));
        let (group, phase) = scales;
        let aligned = group % step == 0 && phase % step == 0;
        let fits = zero_points == scales || zero_points == (features, 0);
        (aligned && fits).then_some(Grouping {
            group,
            phase,
            features,
        })
    }

    /// Writes the scales, that of the whole matrix included, of the groups that some features lie
    /// in: `[groups, 32]`.
    ///
    /// # Arguments
    ///
    /// - `next` - the panel whose scales are read after these, null if it is the same one: as many
    ///   bytes are asked for meanwhile.
    pub(crate) fn decode_scales(
        &self,
        isa: Isa,
        panel: &[u8],
        grouping: Grouping,
        features: &Range<usize>,
        out: &mut [f32],
        next: *const u8,
    ) {
        let sections = self.sections();
        let bytes = &panel[sections.scales..sections.zero_points];
        let groups = grouping.groups(features);
        let read = groups.end * self.scales.map_or(0, Grid::bytes_of_group);
        let op = DecodeScales {
            grid: self.scales,
            bytes,
            global: self.global_scale(),
            groups,
            out,
            next: match next.is_null() {
                true => bytes.as_ptr().wrapping_add(read),
                false => next.wrapping_add(sections.scales),
            },
        };
        // SAFETY: the instruction set is an available one.
        unsafe { isa.dispatch_codes(op) };
    }

    /// Writes what takes the nibbles of a panel to `16 + value - zero point`, twice in each word,
    /// for the groups that some features lie in: `[groups, 32]`.
    pub(crate) fn decode_zero_points(
        &self,
        panel: &[u8],
        grouping: Grouping,
        features: &Range<usize>,
        out: &mut [u32],
    ) {
        let Some(grid) = self.zero_points else {
            return;
        };
        let bytes = &panel[self.sections().zero_points..];
        let groups = grouping.groups(features);
        let one = grid.phase + self.cols <= grid.group;
        for (group, out) in groups.zip(out.chunks_exact_mut(LANES)) {
            let group = if one { 0 } else { group };
            let words = |code: u8| (8 - i32::from(code.cast_signed())).cast_unsigned() * 0x1_0001;
            match grid.shared {
                true => out.fill(words(bytes[group])),
                false => {
                    let codes = &bytes[group * LANES..][..LANES];
                    out.iter_mut().zip(codes).for_each(|(o, c)| *o = words(*c));
                }
            }
        }
    }

    /// Whether nibbles less their zero points are integers from -16 to 15.
    pub(super) fn has_nibble_zero_points(&self, panels: &[u8]) -> bool {
        let sections = self.sections();
        let small = |panel: &[u8]| {
            let codes = &panel[sections.zero_points..];
            codes.iter().all(|c| (-8..=8).contains(&c.cast_signed()))
        };
        let is_i8 = |grid: Grid| grid.format == ScaleFormat::I8;
        self.zero_points.is_some_and(is_i8) && panels.chunks_exact(sections.end).all(small)
    }
}

struct DecodeScales<'a> {
    grid: Option<Grid>,
    bytes: &'a [u8],
    global: f32,
    groups: Range<usize>,
    out: &'a mut [f32],
    /// Where the scales lie that come next.
    next: *const u8,
}

impl Op for DecodeScales<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let out = self.out.chunks_exact_mut(LANES);
        let Some(Grid { format, shared, .. }) = self.grid else {
            return out
                .take(self.groups.len())
                .for_each(|o| o.fill(self.global));
        };
        let size = format.bytes();
        let len = self.grid.map_or(0, Grid::bytes_of_group);
        for (i, (group, out)) in self.groups.zip(out).enumerate() {
            for line in (i * len..(i + 1) * len).step_by(64) {
                // SAFETY: the caller's promise; any address may be asked for.
                unsafe { S::prefetch(self.next.wrapping_add(line)) };
            }
            if shared {
                let scale = format.decode(&self.bytes[group * size..]);
                out.fill(scale.unwrap_or(f32::NAN) * self.global);
                continue;
            }
            let bytes = &self.bytes[group * LANES * size..][..LANES * size];
            // SAFETY: the caller's promise; there are the bytes of 32 scales and room for them.
            unsafe {
                let scales = S::load_scales(format, bytes.as_ptr());
                S::store(out.as_mut_ptr(), S::mul(scales, S::splat(self.global)));
            }
        }
    }
}
