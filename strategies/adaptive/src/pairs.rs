//! Counts with which no two replicas have to share a rank that cannot carry both.

use crate::apportion::Apportionment;
use crate::order::{index_of, longest_first};

/// What is asked of the counts of a layer whose ranks are all alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs<'a> {
    /// Load of each expert, `[E]`.
    pub(crate) weights: &'a [f64],
    /// The same in single precision, and the keys of all experts, sorted.
    pub(crate) load: &'a [f32],
    pub(crate) sorted: &'a [u64],
    pub(crate) num_ranks: usize,
    /// The load that no rank is to exceed.
    pub(crate) limit: f64,
}

impl Pairs<'_> {
    /// Other counts and their replicas, longest first; `None` if there is nothing to change, or no way to.
    ///
    /// Of the heaviest `R + 1` replicas two share a rank. If the lightest two of these are above the limit
    /// together with the lightest of all beside them, one has to become smaller: its expert gets
    /// another replica, from an expert whose replicas grow least by that.
    ///
    /// Time: O(P) for each replica that is given away, `R` at most.
    ///
    /// # Arguments
    ///
    /// - `order` - the expert of each replica, longest first, `[P]`.
    pub(crate) fn loosen(
        &self,
        given: &Apportionment,
        order: &[u32],
    ) -> Option<(Apportionment, Vec<u32>)> {
        let per_rank = order.len() / self.num_ranks;
        if per_rank < 2 || self.num_ranks < 2 {
            return None;
        }
        let mut room = self.room(given, order, per_rank);
        if room >= 0.0 {
            return None;
        }
        let (mut given, mut order) = (given.clone(), order.to_vec());
        for _ in 0..self.num_ranks {
            if room >= 0.0 {
                return Some((given, order));
            }
            let lighter = order[self.num_ranks];
            let most = self.limit - self.beside(&given, &order, per_rank);
            self.pass_on(&mut given, lighter, most)?;
            order = longest_first(self.load, self.sorted, &given);
            room = self.room(&given, &order, per_rank);
        }
        None
    }

    fn share(&self, given: &Apportionment, expert: u32) -> f64 {
        self.weights[expert as usize] / f64::from(given.counts[expert as usize])
    }

    /// What sits beside two replicas at least.
    fn beside(&self, given: &Apportionment, order: &[u32], per_rank: usize) -> f64 {
        let lightest = &order[order.len() + 2 - per_rank..];
        lightest.iter().map(|&e| self.share(given, e)).sum()
    }

    /// What a rank could carry beside two of the heaviest `R + 1` replicas; below 0 if it is above the limit.
    fn room(&self, given: &Apportionment, order: &[u32], per_rank: usize) -> f64 {
        let pair = order[self.num_ranks - 1..=self.num_ranks].iter();
        let pair: f64 = pair.map(|&e| self.share(given, e)).sum();
        self.limit - self.beside(given, order, per_rank) - pair
    }

    /// Gives an expert another replica, or the heaviest of those with one replica if it is one of them. It comes
    /// from an expert whose replicas grow least, and not above `most`; `None` if there is no such expert.
    fn pass_on(&self, given: &mut Apportionment, to: u32, most: f64) -> Option<()> {
        let (several, single) = self.sorted.split_at(given.num_several);
        let to = match given.counts[to as usize] {
            1 => index_of(*single.first()?),
            _ => to,
        };
        let grown = |e: u32| self.weights[e as usize] / f64::from(given.counts[e as usize] - 1);
        // Of three replicas two are left: those with several stay the heaviest experts.
        let from = several
            .iter()
            .map(|&key| index_of(key))
            .filter(|&e| e != to && given.counts[e as usize] > 2 && grown(e) <= most)
            .min_by(|&a, &b| grown(a).total_cmp(&grown(b)))?;
        let last = given.extras.iter().rposition(|&e| e == from)?;
        given.extras[last] = to;
        given.num_several += usize::from(given.counts[to as usize] == 1);
        given.counts[to as usize] += 1;
        given.counts[from as usize] -= 1;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apportion::apportion;
    use crate::order::experts;

    #[test]
    fn pairs_that_no_rank_carries_are_parted() {
        let weights = [30.0, 14.0, 1.0, 1.0, 1.0, 1.0];
        let load = weights.map(|weight| weight as f32);
        let sorted = experts(&load);
        let given = apportion(&load, &sorted, 9, 3);
        assert_eq!(given.counts, [3, 2, 1, 1, 1, 1]);
        let order = longest_first(&load, &sorted, &given);
        let within = |limit| {
            let pairs = Pairs {
                weights: &weights,
                load: &load,
                sorted: &sorted,
                num_ranks: 3,
                limit,
            };
            pairs.loosen(&given, &order)
        };
        // Of 10, 10, 10 and 7 two share a rank with 1.
        assert_eq!(within(18.0), None);
        let (loose, order) = within(17.0).unwrap();
        assert_eq!(loose.counts, [2, 3, 1, 1, 1, 1]);
        assert_eq!((loose.extras, loose.num_several), (vec![0, 1, 1], 2));
        assert_eq!(order, [0, 0, 1, 1, 1, 2, 3, 4, 5]);
        // 15 and 1 beside it are too much.
        assert_eq!(within(15.5), None);
    }

    #[test]
    fn an_expert_with_one_replica_gets_a_second() {
        let weights = [24.0, 7.0, 6.5, 1.0, 1.0, 0.5];
        let load = weights.map(|weight| weight as f32);
        let sorted = experts(&load);
        let given = apportion(&load, &sorted, 8, 4);
        assert_eq!(given.counts, [3, 1, 1, 1, 1, 1]);
        let order = longest_first(&load, &sorted, &given);
        let pairs = Pairs {
            weights: &weights,
            load: &load,
            sorted: &sorted,
            num_ranks: 4,
            limit: 13.0,
        };
        let (loose, _) = pairs.loosen(&given, &order).unwrap();
        assert_eq!(
            (loose.counts, loose.num_several),
            (vec![2, 2, 1, 1, 1, 1], 2)
        );
    }
}
