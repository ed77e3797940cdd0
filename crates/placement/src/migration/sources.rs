//! From which replica an expert is received.

/// One source per demand, such that no choice of sources has a smaller largest number of demands
/// per source; nor, with that, a smaller second largest, and so on.
///
/// This is an optimal semi-matching, found by giving each demand in turn to the least loaded source
/// that an alternating path reaches: algorithm ASM2 of Harvey, Ladner, Lovász and Tamir,
/// "Semi-matchings for bipartite graphs and load balancing", J. Algorithms 59 (2006). O(n m) time for
/// n demands with m allowed sources in total; in practice a search ends after a few steps, at the
/// first idle source.
///
/// # Arguments
///
/// - `allowed` - the sources that each demand may use, ascending, at least one.
/// - `num_sources` - sources are `0..num_sources`.
///
/// # Returns
///
/// The source of each demand. Among equally loaded sources, the first that the search meets.
pub(super) fn balanced_sources(allowed: &[Vec<usize>], num_sources: usize) -> Vec<usize> {
    let mut source_of = vec![usize::MAX; allowed.len()];
    let mut served: Vec<Vec<usize>> = vec![Vec::new(); num_sources];
    // The demand through which the search that is under way reached a source.
    let mut via = vec![usize::MAX; num_sources];
    let mut reached = Vec::new();
    for demand in 0..allowed.len() {
        let mut source = least_loaded(demand, allowed, &served, &mut via, &mut reached);
        // The demands along the path move up by one, which frees the source nearest to `demand`.
        loop {
            let moved = via[source];
            let previous = std::mem::replace(&mut source_of[moved], source);
            served[source].push(moved);
            if moved == demand {
                break;
            }
            served[previous].retain(|&d| d != moved);
            source = previous;
        }
        for s in reached.drain(..) {
            via[s] = usize::MAX;
        }
    }
    source_of
}

/// Breadth first from a demand to its sources, to the demands that they serve, and so on.
fn least_loaded(
    demand: usize,
    allowed: &[Vec<usize>],
    served: &[Vec<usize>],
    via: &mut [usize],
    reached: &mut Vec<usize>,
) -> usize {
    let mut best = usize::MAX;
    let mut next = 0;
    let mut visit = |from: usize, reached: &mut Vec<usize>| {
        for &source in &allowed[from] {
            if via[source] == usize::MAX {
                via[source] = from;
                reached.push(source);
                if best == usize::MAX || served[source].len() < served[best].len() {
                    best = source;
                }
            }
        }
        best
    };
    let mut found = visit(demand, reached);
    while next < reached.len() && !served[found].is_empty() {
        for &other in &served[reached[next]] {
            found = visit(other, reached);
        }
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(sources: &[usize], num_sources: usize) -> Vec<usize> {
        let mut loads = vec![0; num_sources];
        for &s in sources {
            loads[s] += 1;
        }
        loads.sort_unstable_by(|a, b| b.cmp(a));
        loads
    }

    /// The sorted loads of the best of all assignments.
    fn brute_force(allowed: &[Vec<usize>], num_sources: usize) -> Vec<usize> {
        let mut best = vec![usize::MAX];
        let mut choice = vec![0; allowed.len()];
        loop {
            let sources: Vec<usize> = choice.iter().zip(allowed).map(|(&c, a)| a[c]).collect();
            best = best.min(loads(&sources, num_sources));
            let Some(i) = (0..choice.len()).find(|&i| choice[i] + 1 < allowed[i].len()) else {
                return best;
            };
            choice[i] += 1;
            choice[..i].fill(0);
        }
    }

    #[test]
    fn earlier_demands_make_room() {
        // Greedy gives demand 0 to source 0, and demand 1 can use no other.
        let sources = balanced_sources(&[vec![0, 1], vec![0]], 2);
        assert_eq!(sources, [1, 0]);
        assert_eq!(
            balanced_sources(&[vec![1, 2], vec![1, 2]], 3),
            [1, 2],
            "ties go to the lowest source"
        );
        assert!(balanced_sources(&[], 0).is_empty());
    }

    proptest! {
        #[test]
        fn no_assignment_is_better(
            allowed in prop::collection::vec(prop::collection::btree_set(0_usize..5, 1..4), 0..8)
        ) {
            let allowed: Vec<Vec<usize>> =
                allowed.into_iter().map(|a| a.into_iter().collect()).collect();
            let sources = balanced_sources(&allowed, 5);
            for (source, allowed) in sources.iter().zip(&allowed) {
                prop_assert!(allowed.contains(source));
            }
            prop_assert_eq!(loads(&sources, 5), brute_force(&allowed, 5));
        }
    }
}
