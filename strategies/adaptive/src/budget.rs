//! Which layers move how far.

use crate::replan::Stop;

/// The stop of each layer at which it ends: the last one, as far as a budget of arrivals over all
/// layers goes; where it does not, the arrivals that lower the largest load most come first, ties to
/// the lowest layer.
///
/// # Arguments
///
/// - `ways` - `[L]`, each with one stop or more.
/// - `min_gain` - a layer that would lower its largest load by a smaller part stays where it is.
///
/// # Returns
///
/// The stops, `[L]`; `None` if even the first stops are beyond the budget.
pub(crate) fn choose(
    ways: &[Vec<Stop>],
    budget: Option<usize>,
    min_gain: f64,
) -> Option<Vec<usize>> {
    let pays = |way: &[Stop]| {
        let (first, last) = (way[0].largest, way[way.len() - 1].largest);
        first - last > min_gain * first
    };
    let ends: Vec<usize> = ways
        .iter()
        .map(|way| if pays(way) { way.len() - 1 } else { 0 })
        .collect();
    let Some(budget) = budget else {
        return Some(ends);
    };
    let required: usize = ways.iter().map(|way| way[0].moved).sum();
    let mut left = budget.checked_sub(required)?;
    let mut at = vec![0; ways.len()];
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (layer, way) in ways.iter().enumerate() {
            if let Some((worth, stop)) = next(&way[..=ends[layer]], at[layer], left)
                && best.is_none_or(|(most, ..)| worth > most)
            {
                best = Some((worth, layer, stop));
            }
        }
        let Some((_, layer, stop)) = best else {
            return Some(at);
        };
        let moved = |i: usize| ways[layer][i].moved;
        left = (left + moved(at[layer])).saturating_sub(moved(stop));
        at[layer] = stop;
    }
}

/// The later stop that gains most per arrival.
fn next(way: &[Stop], at: usize, left: usize) -> Option<(f64, usize)> {
    let mut best = None;
    let mut most = 0.0;
    for (i, stop) in way.iter().enumerate().skip(at + 1) {
        let arrivals = stop.moved.saturating_sub(way[at].moved);
        let worth = (way[at].largest - stop.largest) / (arrivals as f64).max(0.5);
        if arrivals <= left && worth > most {
            (best, most) = (Some((worth, i)), worth);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(stops: &[(usize, f64)]) -> Vec<Stop> {
        let stop = |&(moved, largest): &(usize, f64)| Stop {
            slots: Vec::new(),
            moved,
            largest,
        };
        stops.iter().map(stop).collect()
    }

    #[test]
    fn the_budget_goes_where_it_gains_most() {
        let ways = [
            way(&[(0, 10.0), (2, 9.0), (3, 6.0)]),
            way(&[(0, 10.0), (1, 8.0)]),
        ];
        assert_eq!(choose(&ways, None, 0.01), Some(vec![2, 1]));
        assert_eq!(choose(&ways, Some(4), 0.01), Some(vec![2, 1]));
        assert_eq!(choose(&ways, Some(3), 0.01), Some(vec![1, 1]));
        assert_eq!(choose(&ways, Some(1), 0.01), Some(vec![0, 1]));
        assert_eq!(choose(&ways, Some(4), 0.3), Some(vec![2, 0]));
    }

    #[test]
    fn what_has_to_move_is_paid_first() {
        let ways = [way(&[(2, 10.0), (3, 1.0)]), way(&[(1, 10.0)])];
        assert_eq!(choose(&ways, Some(2), 0.0), None);
        assert_eq!(choose(&ways, Some(3), 0.0), Some(vec![0, 0]));
    }
}
