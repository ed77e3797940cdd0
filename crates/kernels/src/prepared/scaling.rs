//! The scales and zero points of a panel as loops over codes take them.
#![allow(unsafe_code, reason = "vector instructions")]

use std::ops::Range;

use moekit_quant::ScaleFormat;

use super::layout::{Grid, Layout};
use crate::Isa;
use crate::simd::{LANES, Op, Simd, above_nibble};

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
    pub(crate) fn groups(self, features: &Range<usize>) -> Range<usize> {
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
        let of = |grid: Option<Grid>| match grid.filter(|g| !g.is_one(self.cols)) {
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
    /// - `next` - a panel whose scales of the same groups are asked for meanwhile, or null.
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
        let op = DecodeScales {
            grid: self.scales,
            bytes,
            global: self.global_scale(),
            next: same_groups(self.scales, &groups, next, sections.scales),
            groups,
            out,
        };
        // SAFETY: the instruction set is an available one.
        unsafe { isa.dispatch(op) };
    }

    /// Writes what takes the nibbles of a panel to `16 + value - zero point`, in all bytes of a
    /// word, for the groups that some features lie in: `[groups, 32]`.
    ///
    /// # Arguments
    ///
    /// - `next` - as for [`Layout::decode_scales`].
    pub(crate) fn decode_zero_points(
        &self,
        isa: Isa,
        panel: &[u8],
        grouping: Grouping,
        features: &Range<usize>,
        out: &mut [u32],
        next: *const u8,
    ) {
        let Some(grid) = self.zero_points else {
            return;
        };
        let section = self.sections().zero_points;
        let bytes = &panel[section..];
        let groups = grouping.groups(features);
        let op = DecodeZeroPoints {
            grid,
            one: grid.is_one(self.cols),
            bytes,
            next: same_groups(Some(grid), &groups, next, section),
            groups,
            out,
        };
        // SAFETY: the instruction set is an available one.
        unsafe { isa.dispatch(op) };
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

/// Where the scales (or zero points) of some groups lie in a section of panel `next`.
fn same_groups(
    grid: Option<Grid>,
    groups: &Range<usize>,
    next: *const u8,
    section: usize,
) -> *const u8 {
    let before = groups.start * grid.map_or(0, Grid::bytes_of_group);
    next.wrapping_add(section + before)
}

/// Asks for as many bytes from an address on as group `i` of some has.
///
/// # Safety
///
/// The machine has the instructions of `S`.
#[inline(always)]
unsafe fn prefetch_group<S: Simd>(next: *const u8, i: usize, len: usize) {
    for line in (i * len..(i + 1) * len).step_by(64) {
        // SAFETY: the caller's promise; any address may be asked for.
        unsafe { S::prefetch(next.wrapping_add(line)) };
    }
}

struct DecodeScales<'a> {
    grid: Option<Grid>,
    bytes: &'a [u8],
    global: f32,
    groups: Range<usize>,
    out: &'a mut [f32],
    /// Where scales lie that are read later.
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
            // SAFETY: the caller's promise.
            unsafe { prefetch_group::<S>(self.next, i, len) };
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

struct DecodeZeroPoints<'a> {
    grid: Grid,
    /// Whether all groups share theirs.
    one: bool,
    bytes: &'a [u8],
    groups: Range<usize>,
    out: &'a mut [u32],
    /// Where zero points lie that are read later.
    next: *const u8,
}

impl Op for DecodeZeroPoints<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let out = self.out.chunks_exact_mut(LANES);
        for (i, (group, out)) in self.groups.zip(out).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { prefetch_group::<S>(self.next, i, self.grid.bytes_of_group()) };
            let group = if self.one { 0 } else { group };
            if self.grid.shared {
                out.fill(above_nibble(self.bytes[group]));
                continue;
            }
            let bytes = &self.bytes[group * LANES..][..LANES];
            // SAFETY: the caller's promise; there are 32 zero points and room for as many lanes.
            unsafe { S::keep_pairs(out.as_mut_ptr().cast(), S::load_zero_points(bytes.as_ptr())) };
        }
    }
}
