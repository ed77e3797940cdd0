//! A layout without experts that sit twice on a rank.

use crate::layout::Layout;

/// Takes the second replica of an expert from each rank that has one: by a swap with another rank, or
/// by giving the slot to another expert, whichever leaves the smallest largest load. No rank has
/// more slots than there are experts. What would lift a rank above the limit stays.
///
/// Time: O(duplicates × P²); duplicates are few.
pub(crate) fn without_duplicates(mut layout: Layout<'_>, limit: f64) -> Layout<'_> {
    let ranks = layout.ranks;
    for rank in ranks.live() {
        for slot in ranks.slots(rank) {
            let expert = layout.expert(slot);
            let earlier = &layout.experts_of(rank)[..slot - ranks.slots(rank).start];
            if earlier.contains(&expert)
                && let Some(better) = best_repair(&layout, rank, slot)
                && better.largest() <= limit
            {
                layout = better;
            }
        }
    }
    layout
}

fn best_repair<'a>(layout: &Layout<'a>, rank: usize, slot: usize) -> Option<Layout<'a>> {
    let expert = layout.expert(slot);
    let mut best: Option<Layout<'a>> = None;
    let mut keep = |candidate: Layout<'a>| {
        if best
            .as_ref()
            .is_none_or(|b| candidate.largest() < b.largest())
        {
            best = Some(candidate);
        }
    };
    for other in layout
        .ranks
        .live()
        .filter(|&other| !layout.holds(other, expert))
    {
        for theirs in layout.ranks.slots(other) {
            if !layout.holds(rank, layout.expert(theirs)) {
                let mut candidate = layout.clone();
                candidate.swap(slot, theirs);
                keep(candidate);
            }
        }
    }
    for missing in (0..layout.weights.len() as u32).filter(|&e| !layout.holds(rank, e)) {
        let mut candidate = layout.clone();
        candidate.replace(slot, missing);
        keep(candidate);
    }
    best
}
