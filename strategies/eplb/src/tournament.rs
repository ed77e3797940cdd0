//! Which of many keys is the least, while they change one at a time.

use std::ops::Range;

/// Tournaments of one size: trees of matches between keys, where the lesser wins.
///
/// Half of a tree are its inner nodes, from 1 on, then come its leaves. Node `i` holds the lesser of `2 i`
/// and `2 i + 1`. A new key plays its way up, one match per level, without a branch that depends on
/// the keys.
///
/// The next key depends on who won before, so that a processor waits more than it computes. Three
/// [`Game`]s are therefore played in turn: while one waits, the others go on.
#[derive(Debug)]
pub(crate) struct Tournaments {
    nodes: Vec<u64>,
    /// Nodes of one tree.
    size: usize,
}

/// What is decided by a tournament.
pub(crate) trait Game {
    /// Sets up the tree.
    fn begin(&mut self, tree: &mut [u64]);
    /// Makes use of the winner and replaces its key.
    fn turn(&mut self, tree: &mut [u64], turn: usize);
    /// Makes use of how it ended.
    fn end(&mut self) {}
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

    /// Nodes of a tree.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Plays all games.
    pub(crate) fn play(&mut self, games: impl Iterator<Item = impl Game>, turns: Range<usize>) {
        // The compiler counts the levels of trees of the usual sizes, and checks no bounds.
        macro_rules! sized {
            ($($size:literal)*) => {
                match self.size {
                    $($size => play::<[u64; $size], _>(self.nodes.as_chunks_mut().0, games, turns),)*
                    size => play(&mut self.nodes.chunks_mut(size).collect::<Vec<_>>(), games, turns),
                }
            };
        }
        sized!(16 32 64 128 256 512 1024);
    }
}

fn play<T: AsMut<[u64]>, G: Game>(
    trees: &mut [T],
    mut games: impl Iterator<Item = G>,
    turns: Range<usize>,
) {
    let [a, b, c] = trees else { return };
    let [a, b, c] = [a.as_mut(), b.as_mut(), c.as_mut()];
    loop {
        match [games.next(), games.next(), games.next()] {
            [Some(mut first), Some(mut second), Some(mut third)] => {
                first.begin(a);
                second.begin(b);
                third.begin(c);
                for turn in turns.clone() {
                    first.turn(a, turn);
                    second.turn(b, turn);
                    third.turn(c, turn);
                }
                first.end();
                second.end();
                third.end();
            }
            [None, ..] => return,
            fewer => {
                for mut game in fewer.into_iter().flatten() {
                    game.begin(a);
                    turns.clone().for_each(|turn| game.turn(a, turn));
                    game.end();
                }
            }
        }
    }
}

/// Lets keys play that take the first leaves.
#[inline(always)]
pub(crate) fn play_all(tree: &mut [u64], keys: impl Iterator<Item = u64>) {
    let leaves = tree.len() / 2;
    (tree[leaves..].iter_mut().zip(keys)).for_each(|(leaf, key)| *leaf = key);
    for at in (1..leaves).rev() {
        tree[at] = tree[2 * at].min(tree[2 * at + 1]);
    }
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
