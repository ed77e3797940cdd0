//! Which of many keys is the least, while they change one at a time.

use std::array;

/// Tournaments of one size: trees of matches between keys, where the lesser wins.
///
/// Half of a tree are its inner nodes, from 1 on, then come its leaves. Node `i` holds the lesser of `2 i`
/// and `2 i + 1`. A new key plays its way up, one match per level, without a branch that depends on
/// the keys.
///
/// The next key depends on who won before, so that a processor waits more than it computes. Three games
/// are therefore played in turn: while one waits, the others go on.
#[derive(Debug)]
pub(crate) struct Tournaments {
    nodes: Vec<u64>,
    /// Nodes of one tree.
    size: usize,
}

/// What is decided by tournaments, several games of one kind.
pub(crate) trait Games {
    /// Plays `N` games in turn, with a tree each.
    ///
    /// # Arguments
    ///
    /// - `first` - the first of these games.
    fn play<const N: usize>(&mut self, trees: [&mut [u64]; N], first: usize);
}

impl Tournaments {
    /// Tournaments between `leaves` keys each; other leaves lose.
    pub(crate) fn new(leaves: usize) -> Self {
        let size = 2 * leaves.next_power_of_two().max(8);
        Self {
            nodes: vec![u64::MAX; 3 * size],
            size,
        }
    }

    /// Plays `count` games.
    pub(crate) fn play(&mut self, games: &mut impl Games, count: usize) {
        // The compiler counts the levels of trees of the usual sizes, and checks no bounds.
        macro_rules! sized {
            ($($size:literal)*) => {
                match self.size {
                    $($size => play::<[u64; $size]>(self.nodes.as_chunks_mut().0, games, count),)*
                    size => play(&mut self.nodes.chunks_mut(size).collect::<Vec<_>>(), games, count),
                }
            };
        }
        sized!(16 32 64 128 256 512 1024);
    }
}

fn play<T: AsMut<[u64]>>(trees: &mut [T], games: &mut impl Games, count: usize) {
    let [a, b, c] = trees else { return };
    let [a, b, c] = [a.as_mut(), b.as_mut(), c.as_mut()];
    let rest = count - count % 3;
    for first in (0..rest).step_by(3) {
        games.play([&mut *a, &mut *b, &mut *c], first);
    }
    for game in rest..count {
        games.play([&mut *a], game);
    }
}

/// The lists of `N` games of many, `len` entries each. The compiler knows by this that they are of equal length.
#[inline(always)]
pub(crate) fn lists<T, const N: usize>(all: &[T], len: usize, first: usize) -> [&[T]; N] {
    array::from_fn(|game| &all[(first + game) * len..][..len])
}

/// The same to be written.
#[inline(always)]
pub(crate) fn lists_mut<T, const N: usize>(
    all: &mut [T],
    len: usize,
    first: usize,
) -> [&mut [T]; N] {
    let mut lists = all[first * len..].chunks_exact_mut(len);
    array::from_fn(|_| &mut lists.next().unwrap_or_default()[..len])
}

/// Lets keys play that take the first leaves. The winner.
#[inline(always)]
pub(crate) fn play_all(tree: &mut [u64], keys: impl Iterator<Item = u64>) -> u64 {
    let leaves = tree.len() / 2;
    for (leaf, key) in tree[leaves..].iter_mut().zip(keys) {
        *leaf = key;
    }
    for at in (1..leaves).rev() {
        tree[at] = tree[2 * at].min(tree[2 * at + 1]);
    }
    tree[1]
}

/// Puts `key` in place of that of a leaf. The winner then.
#[inline(always)]
pub(crate) fn replace(tree: &mut [u64], leaf: usize, key: u64) -> u64 {
    let mut at = (tree.len() / 2 + leaf) & (tree.len() - 1);
    let mut winner = key;
    for _ in 1..tree.len().ilog2() {
        tree[at] = winner;
        winner = winner.min(tree[at ^ 1]);
        at /= 2;
    }
    winner
}
