/// Groups of consecutive experts, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub(super) num_groups: usize,
    /// Groups that are kept.
    pub(super) top_groups: usize,
    /// Whether groups compete by the sum of their two largest values, otherwise by the largest.
    pub(super) by_sum: bool,
}

/// NaN counts as less than every number, so that it is chosen last.
fn key(value: f32) -> f32 {
    if value.is_nan() {
        f32::NEG_INFINITY
    } else {
        value
    }
}

/// Appends the `k` candidates of the largest values in descending order; of equal ones the lowest
/// index comes first. The candidates ascend.
pub(super) fn top_k(
    values: &[f32],
    candidates: impl Iterator<Item = usize>,
    k: usize,
    chosen: &mut Vec<usize>,
) {
    let start = chosen.len();
    for candidate in candidates {
        let value = key(values[candidate]);
        let full = chosen.len() - start == k;
        let last = chosen.get(start..).and_then(<[usize]>::last);
        if full && last.is_none_or(|&last| value <= key(values[last])) {
            continue;
        }
        if full {
            chosen.pop();
        }
        let at = chosen[start..].partition_point(|&other| key(values[other]) >= value);
        chosen.insert(start + at, candidate);
    }
}

/// [`top_k`] among the experts of the best groups: groups compete by the largest of their values,
/// or by the sum of their two largest.
pub(super) fn grouped_top_k(values: &[f32], groups: Groups, k: usize, chosen: &mut Vec<usize>) {
    let size = values.len() / groups.num_groups;
    let scores: Vec<f32> = values
        .chunks_exact(size)
        .map(|g| group_score(g, groups.by_sum))
        .collect();
    let mut kept = Vec::with_capacity(groups.top_groups);
    top_k(&scores, 0..scores.len(), groups.top_groups, &mut kept);
    kept.sort_unstable();
    let candidates = kept.into_iter().flat_map(|g| g * size..(g + 1) * size);
    top_k(values, candidates, k, chosen);
}

fn group_score(values: &[f32], by_sum: bool) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for value in values.iter().map(|&v| key(v)) {
        if value > first {
            (first, second) = (value, first);
        } else if value > second {
            second = value;
        }
    }
    // A group of one expert has no second.
    if by_sum && values.len() > 1 {
        first + second
    } else {
        first
    }
}

/// Sorts ids and weights by descending weight, equal ones by id.
pub(super) fn sort_descending(pairs: &mut [(usize, f32)]) {
    // Adding zero makes one zero of the two.
    pairs.sort_unstable_by(|a, b| {
        (key(b.1) + 0.0)
            .total_cmp(&(key(a.1) + 0.0))
            .then(a.0.cmp(&b.0))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(values: &[f32], k: usize) -> Vec<usize> {
        let mut chosen = Vec::new();
        top_k(values, 0..values.len(), k, &mut chosen);
        chosen
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(top(&[1.0; 5], 3), [0, 1, 2]);
        assert_eq!(top(&[0.0, 2.0, 1.0, 2.0, 1.0], 4), [1, 3, 2, 4]);
        assert_eq!(top(&[-0.0, 0.0], 2), [0, 1]);
    }

    #[test]
    fn nan_is_last() {
        let nan = f32::NAN;
        assert_eq!(
            top(&[nan, -1.0, nan, f32::NEG_INFINITY, 3.0], 5),
            [4, 1, 0, 2, 3]
        );
        assert_eq!(top(&[nan; 3], 2), [0, 1]);
        let mut pairs = [(4, nan), (3, 0.5), (2, nan), (1, 0.5)];
        sort_descending(&mut pairs);
        assert_eq!(pairs.map(|p| p.0), [1, 3, 2, 4]);
    }

    #[test]
    fn any_order_equals_a_stable_sort() {
        for seed in 0..200_u64 {
            let mut state = seed;
            let values: Vec<f32> = (0..17)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 61) as f32
                })
                .collect();
            let mut sorted: Vec<usize> = (0..17).collect();
            sorted.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
            for k in 1..=17 {
                assert_eq!(top(&values, k), sorted[..k]);
            }
        }
    }

    #[test]
    fn groups_compete_by_maximum_or_by_sum() {
        // Group 1 has the largest value, group 2 the largest sum.
        let values = [0.0, 0.1, 0.9, 0.0, 0.6, 0.7];
        let choose = |by_sum| {
            let groups = Groups {
                num_groups: 3,
                top_groups: 1,
                by_sum,
            };
            let mut chosen = Vec::new();
            grouped_top_k(&values, groups, 2, &mut chosen);
            chosen
        };
        assert_eq!(choose(false), [2, 3]);
        assert_eq!(choose(true), [5, 4]);
    }

    #[test]
    fn experts_of_other_groups_are_never_chosen() {
        // All values of the kept groups are below those of the group that loses by sum.
        let values = [-5.0, 1.0, -1.0, -1.0, -2.0, -1.5];
        let groups = Groups {
            num_groups: 3,
            top_groups: 2,
            by_sum: true,
        };
        let mut chosen = Vec::new();
        grouped_top_k(&values, groups, 4, &mut chosen);
        assert_eq!(chosen, [2, 3, 5, 4]);
    }
}
