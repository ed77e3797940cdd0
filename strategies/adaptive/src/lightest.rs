//! The lightest rank with room, known at all times.

/// A tree of matches between ranks: the lighter one goes on, of equal ones the lower one.
#[derive(Clone, Debug)]
pub(crate) struct Lightest {
    /// The winner at 1, the two that a winner at `i` comes from at `2 i` and `2 i + 1`.
    keys: Vec<u64>,
}

/// The bits of a key that name a rank; more than there can be ranks.
const RANK: u64 = (1 << 17) - 1;

impl Lightest {
    /// `num_ranks` ranks, all without room.
    pub(crate) fn new(num_ranks: usize) -> Self {
        Self {
            keys: vec![u64::MAX; 2 * num_ranks.next_power_of_two()],
        }
    }

    /// A rank with room carries this much, not negative. Less than a part of 2^-35 is no difference.
    pub(crate) fn set(&mut self, rank: usize, time: f64) {
        // Non-negative floats order as their bits do; those of a rank break ties.
        self.put(rank, time.to_bits() & !RANK | rank as u64);
    }

    /// A rank has no room any more.
    pub(crate) fn close(&mut self, rank: usize) {
        self.put(rank, u64::MAX);
    }

    fn put(&mut self, rank: usize, key: u64) {
        let mut at = self.keys.len() / 2 + rank;
        let mut winner = key;
        // The next rank is asked for before the way up is done, so it does not go that way: it is this
        // one or the best of the others.
        let mut others = u64::MAX;
        while at > 1 {
            self.keys[at] = winner;
            let other = self.keys[at ^ 1];
            others = others.min(other);
            winner = winner.min(other);
            at /= 2;
        }
        self.keys[1] = key.min(others);
    }

    /// The lightest rank with room.
    pub(crate) fn rank(&self) -> Option<usize> {
        let winner = self.keys[1];
        (winner != u64::MAX).then_some((winner & RANK) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lightest_wins_and_ties_go_to_the_lowest() {
        let mut lightest = Lightest::new(3);
        assert_eq!(lightest.rank(), None);
        for rank in 0..3 {
            lightest.set(rank, 0.0);
        }
        assert_eq!(lightest.rank(), Some(0));
        lightest.set(0, 1e300);
        lightest.set(1, 2.0);
        lightest.set(2, 2.0);
        assert_eq!(lightest.rank(), Some(1));
        lightest.close(1);
        assert_eq!(lightest.rank(), Some(2));
        lightest.close(2);
        assert_eq!(lightest.rank(), Some(0));
    }

    #[test]
    fn one_rank_is_enough() {
        let mut lightest = Lightest::new(1);
        lightest.set(0, 3.0);
        assert_eq!(lightest.rank(), Some(0));
        lightest.close(0);
        assert_eq!(lightest.rank(), None);
    }
}
