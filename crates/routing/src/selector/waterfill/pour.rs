use super::graph::Edge;

/// Pours `amount` tokens over ranks as water finds its level: the largest of the loads that result
/// is the least possible, and the poured ranks differ by at most one token; the odd tokens go to
/// the first ranks.
///
/// The level is found from above: the mean over all ranks can only be too high because of ranks
/// that stand above it, so those are left out and the mean taken again (Michelot, "A finite
/// algorithm for finding the projection of a point onto the canonical simplex of R^n", 1986).
///
/// # Arguments
///
/// - `edges` - the ranks to pour on, `shares` - what the expert has there, same length.
/// - `loads` - the loads of all ranks, `[R]`.
pub(super) fn pour(amount: u64, edges: &[Edge], shares: &mut [u64], loads: &mut [u64]) {
    if amount == 0 || edges.is_empty() {
        return;
    }
    let load = |edge: &Edge| loads[edge.rank as usize];
    let (mut level, mut odd, mut above) = (u64::MAX, 0, usize::MAX);
    loop {
        let (mut sum, mut poured) = (amount, 0);
        for edge in edges {
            if load(edge) <= level {
                sum += load(edge);
                poured += 1;
            }
        }
        (level, odd) = (sum / poured, sum % poured);
        if poured as usize == above { break; }
        above = poured as usize;
    }
    let _ = &mut odd;
    for (edge, share) in edges.iter().zip(shares) {
        let load = &mut loads[edge.rank as usize];
        if *load <= level {
            let part = level - *load + u64::from(odd > 0);
            odd = odd.saturating_sub(1);
            *share += part;
            *load += part;
        }
    }
}
