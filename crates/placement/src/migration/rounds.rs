//! When a transfer takes place.

use std::collections::BTreeMap;

/// A round for each transfer, such that in a round a rank sends at most once and receives at most
/// once, in as few rounds as there can be: the largest number of transfers that one rank sends, or
/// that one receives.
///
/// Senders and receivers are the two sides of a bipartite multigraph, transfers its edges, rounds
/// its colours; that as many colours as the largest degree are enough is Kőnig's theorem ("Über Graphen
/// und ihre Anwendung auf Determinantentheorie und Mengenlehre", Math. Ann. 77, 1916). His proof is the
/// algorithm: where the two ends of an edge have no free colour in common, exchange two colours along
/// the alternating path from one end; it cannot come back to the other, the graph being bipartite.
/// O(m (D log D + n)) for m transfers, n ranks and largest degree D.
///
/// # Arguments
///
/// - `transfers` - sender and receiver of each.
///
/// # Returns
///
/// The round of each transfer, and the number of rounds.
pub(super) fn assign_rounds(transfers: &[(usize, usize)], num_ranks: usize) -> (Vec<usize>, usize) {
    let mut round_of = vec![0; transfers.len()];
    // The transfer that an end has in a round; senders first, then receivers.
    let mut at: Vec<BTreeMap<usize, usize>> = vec![BTreeMap::new(); 2 * num_ranks];
    let ends = |t: usize| (transfers[t].0, num_ranks + transfers[t].1);
    for t in 0..transfers.len() {
        let (sender, receiver) = ends(t);
        let round = first_free(&at[sender]);
        let other = first_free(&at[receiver]);
        let path = alternating_path(receiver, (round, other), &at, ends);
        for &p in &path {
            let (a, b) = ends(p);
            at[a].remove(&round_of[p]);
            at[b].remove(&round_of[p]);
        }
        for &p in &path {
            round_of[p] = if round_of[p] == round { other } else { round };
            let (a, b) = ends(p);
            at[a].insert(round_of[p], p);
            at[b].insert(round_of[p], p);
        }
        round_of[t] = round;
        at[sender].insert(round, t);
        at[receiver].insert(round, t);
    }
    let num_rounds = at.iter().map(BTreeMap::len).max().unwrap_or(0);
    (round_of, num_rounds)
}

fn first_free(taken: &BTreeMap<usize, usize>) -> usize {
    taken
        .keys()
        .enumerate()
        .find(|&(i, &round)| i != round)
        .map_or(taken.len(), |(i, _)| i)
}

/// The transfers from `end` on that are in the first and the second round by turns.
fn alternating_path(
    mut end: usize,
    (mut round, mut other): (usize, usize),
    at: &[BTreeMap<usize, usize>],
    ends: impl Fn(usize) -> (usize, usize),
) -> Vec<usize> {
    let mut path = Vec::new();
    while let Some(&t) = at[end].get(&round) {
        path.push(t);
        let (sender, receiver) = ends(t);
        end = if end == sender { receiver } else { sender };
        (round, other) = (other, round);
    }
    path
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn largest_degree(transfers: &[(usize, usize)], num_ranks: usize) -> usize {
        (0..num_ranks)
            .flat_map(|r| {
                [
                    transfers.iter().filter(|t| t.0 == r).count(),
                    transfers.iter().filter(|t| t.1 == r).count(),
                ]
            })
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn first_fit_would_need_more() {
        // First fit puts these into rounds 0, 0, 1, and then sender 0 and receiver 2 share no free round.
        let transfers = [(0, 0), (1, 1), (1, 2), (0, 2)];
        let (rounds, num_rounds) = assign_rounds(&transfers, 3);
        assert_eq!(num_rounds, 2);
        assert_ne!(rounds[0], rounds[3]);
        assert_eq!(assign_rounds(&[], 3), (vec![], 0));
        // Several experts between one pair of ranks follow one another.
        assert_eq!(assign_rounds(&[(0, 1); 3], 2), (vec![0, 1, 2], 3));
    }

    proptest! {
        #[test]
        fn rounds_are_matchings_and_as_many_as_the_largest_degree(
            transfers in prop::collection::vec((0_usize..7, 0_usize..7), 0..60)
        ) {
            let (rounds, num_rounds) = assign_rounds(&transfers, 7);
            prop_assert_eq!(num_rounds, largest_degree(&transfers, 7));
            let mut senders = BTreeSet::new();
            let mut receivers = BTreeSet::new();
            for (&round, &(from, to)) in rounds.iter().zip(&transfers) {
                prop_assert!(round < num_rounds);
                prop_assert!(senders.insert((round, from)), "rank {} sends twice", from);
                prop_assert!(receivers.insert((round, to)), "rank {} receives twice", to);
            }
        }
    }
}
