//! How many slots each layer gets, if the replicas are given over all layers together.

use std::borrow::Cow;

use moekit_placement::{Placement, PlacementRequest};

use crate::plan::{Effort, Layer};
use crate::ranks::Ranks;

/// The slots of each rank in each layer, `[L][R]`. Over all layers, a rank has as many as the request
/// gives it in all of them.
///
/// Every replica goes to the layer whose largest load it lowers most, as far as the load tells; the
/// rest is spread evenly.
///
/// Time: that of planning every layer about eight times, without exchanges.
pub(crate) fn slots_of_layers(
    request: &PlacementRequest<'_>,
    weights: &[Cow<'_, [f64]>],
    ranks: &Ranks,
    effort: &Effort,
) -> Vec<Vec<usize>> {
    let experts = request.num_logical_experts();
    let spare = request.num_slots() - experts;
    // No layer holds an expert twice on a rank.
    let most = ranks.live().count() * experts - experts;
    let curves: Vec<Vec<(usize, f64)>> = weights
        .iter()
        .map(|weights| curve(request, weights, ranks, effort, most.min(8 * spare)))
        .collect();
    let replicas = share_out(&curves, spare * weights.len());
    spread_over_ranks(request, &replicas)
}

/// The slots of the placement in force, if over all layers every rank has as many as it is to have.
pub(crate) fn slots_in_force(request: &PlacementRequest<'_>) -> Option<Vec<Vec<usize>>> {
    let current = request.current()?;
    if current.num_ranks() != request.topology().num_ranks() {
        return None;
    }
    let layers = current.layers().iter();
    let slots: Vec<Vec<usize>> = layers.map(Placement::slots_per_rank).collect();
    let fits = |(rank, &asked): (usize, &usize)| {
        slots.iter().map(|layer| layer[rank]).sum::<usize>() == asked * slots.len()
    };
    request
        .slots_per_rank()
        .iter()
        .enumerate()
        .all(fits)
        .then_some(slots)
}

/// Largest loads of a layer by numbers of replicas beyond the first of each expert, falling.
fn curve(
    request: &PlacementRequest<'_>,
    weights: &[f64],
    ranks: &Ranks,
    effort: &Effort,
    most: usize,
) -> Vec<(usize, f64)> {
    let experts = weights.len();
    let live = ranks.live().count();
    let mut replicas = vec![0];
    let mut step = live.div_ceil(8);
    while replicas[replicas.len() - 1] + step <= most {
        replicas.push(replicas[replicas.len() - 1] + step);
        // Finer where the first replicas count.
        if replicas.len().is_multiple_of(3) {
            step *= 2;
        }
    }
    let mut least = f64::INFINITY;
    replicas
        .into_iter()
        .map(|n| {
            let slots = spread(
                experts + n,
                request.slots_per_rank(),
                &mut vec![0.0; ranks.len()],
            );
            let ranks = ranks.with_slots(&slots).without_surplus(experts);
            let layer = Layer {
                ranks: &ranks,
                weights,
                num_groups: None,
                baseline: None,
            };
            least = least.min(layer.sketch(effort).largest());
            (n, least)
        })
        .collect()
}

/// How many replicas each layer gets: always those that lower a largest load most per replica, ties
/// to the lowest layer; what lowers none any more goes to the layers with the fewest.
fn share_out(curves: &[Vec<(usize, f64)>], replicas: usize) -> Vec<usize> {
    let mut at = vec![0; curves.len()];
    let mut left = replicas;
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (layer, curve) in curves.iter().enumerate() {
            let (have, load) = curve[at[layer]];
            for (i, &(n, lower)) in curve.iter().enumerate().skip(at[layer] + 1) {
                let worth = (load - lower) / (n - have) as f64;
                // Less is noise of the packing.
                let counts = load - lower > 1e-3 * load;
                if n - have <= left && counts && best.is_none_or(|(most, ..)| worth > most) {
                    best = Some((worth, layer, i));
                }
            }
        }
        let Some((_, layer, i)) = best else { break };
        left -= curves[layer][i].0 - curves[layer][at[layer]].0;
        at[layer] = i;
    }
    let mut given: Vec<usize> = at
        .iter()
        .zip(curves)
        .map(|(&i, curve)| curve[i].0)
        .collect();
    for _ in 0..left {
        let fewest = (0..given.len()).min_by_key(|&l| given[l]);
        if let Some(layer) = fewest {
            given[layer] += 1;
        }
    }
    given
}

fn spread_over_ranks(request: &PlacementRequest<'_>, replicas: &[usize]) -> Vec<Vec<usize>> {
    let mut owed = vec![0.0; request.slots_per_rank().len()];
    let experts = request.num_logical_experts();
    replicas
        .iter()
        .map(|n| spread(experts + n, request.slots_per_rank(), &mut owed))
        .collect()
}

/// Spreads the slots of a layer over ranks in proportion to what the request gives them.
///
/// # Arguments
///
/// - `owed` - slots that each rank should have had in earlier layers and has not, `[R]`.
fn spread(num_slots: usize, asked: &[usize], owed: &mut [f64]) -> Vec<usize> {
    let total: usize = asked.iter().sum();
    let mut slots: Vec<usize> = asked.iter().map(|&n| num_slots * n / total).collect();
    for (rank, &n) in asked.iter().enumerate() {
        owed[rank] += (num_slots * n) as f64 / total as f64 - slots[rank] as f64;
    }
    for _ in slots.iter().sum()..num_slots {
        let first = (0..slots.len())
            .filter(|&rank| asked[rank] > 0)
            .max_by(|&a, &b| owed[a].total_cmp(&owed[b]).then(b.cmp(&a)));
        let rank = first.unwrap_or_default();
        slots[rank] += 1;
        owed[rank] -= 1.0;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_go_where_they_help() {
        let curves = [
            vec![(0, 10.0), (2, 9.999), (4, 9.998)],
            vec![(0, 20.0), (2, 19.0), (4, 10.0)],
            vec![(0, 12.0), (2, 10.0), (4, 10.0)],
        ];
        assert_eq!(share_out(&curves, 6), [0, 4, 2]);
        assert_eq!(share_out(&curves, 3), [1, 0, 2]);
        assert_eq!(share_out(&curves, 12), [4, 4, 4]);
        assert_eq!(share_out(&curves, 30), [10, 10, 10]);
    }

    #[test]
    fn ranks_have_as_many_slots_as_asked_over_all_layers() {
        let mut owed = vec![0.0; 3];
        let layers: Vec<Vec<usize>> = [7, 5, 9, 7]
            .into_iter()
            .map(|n| spread(n, &[4, 0, 3], &mut owed))
            .collect();
        assert_eq!(layers.iter().map(|l| l[0]).sum::<usize>(), 16);
        assert_eq!(layers.iter().map(|l| l[1]).sum::<usize>(), 0);
        assert_eq!(layers.iter().map(|l| l[2]).sum::<usize>(), 12);
    }
}
