//! What a rank holds after a collective: one block from each rank.

use std::borrow::Cow;
use std::marker::PhantomData;

use bytemuck::Pod;
use moekit_routing::Rank;

use crate::buffer::value_size;
use crate::{Buffer, CommError};

/// One block of values from each rank of the group, in rank order; any of them may be empty.
///
/// A transport that receives into one allocation says so with [`Blocks::contiguous`], one that
/// passes the senders' memory on uses [`Blocks::new`]; [`Blocks::concat`] copies only where it must.
///
/// ```
/// use moekit_parallel::{Blocks, Buffer};
/// use moekit_routing::Rank;
///
/// let blocks = Blocks::new(vec![Buffer::from_vec(vec![1i64, 2]), Buffer::default()]).cast::<i64>()?;
/// assert_eq!(blocks.counts(), [2, 0]);
/// assert_eq!(blocks.get(Rank::new(0)).as_deref(), Some(&[1, 2][..]));
/// assert_eq!(*blocks.concat(), [1, 2]);
/// # Ok::<(), moekit_parallel::CommError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Blocks<T = u8> {
    blocks: Vec<Buffer>,
    whole: Option<Buffer>,
    values: PhantomData<fn() -> T>,
}

impl Blocks {
    /// Blocks that lie anywhere, one per rank.
    pub fn new(blocks: Vec<Buffer>) -> Self {
        Self {
            blocks,
            whole: None,
            values: PhantomData,
        }
    }

    /// Blocks of the given lengths in bytes, one per rank, that lie side by side in `whole`.
    ///
    /// # Errors
    ///
    /// [`CommError::CountsSum`] if the lengths do not add up to the length of `whole`.
    pub fn contiguous(whole: Buffer, lengths: &[usize]) -> Result<Self, CommError> {
        Ok(Self {
            blocks: whole.split(lengths)?,
            whole: Some(whole),
            values: PhantomData,
        })
    }

    /// All blocks, one behind the other; copied if they lie apart.
    pub(crate) fn into_joined(self) -> Buffer {
        match self.whole {
            Some(whole) => whole,
            None => self.concat().into_owned().into(),
        }
    }

    /// The same blocks, read as values of type `T`.
    ///
    /// # Errors
    ///
    /// [`CommError::ElementSize`] if the length of a block is not a multiple of the size of `T`.
    pub fn cast<T: Pod>(self) -> Result<Blocks<T>, CommError> {
        for block in &self.blocks {
            block.check_multiple_of(const { value_size::<T>() })?;
        }
        Ok(Blocks {
            blocks: self.blocks,
            whole: self.whole,
            values: PhantomData,
        })
    }
}

impl<T: Pod> Blocks<T> {
    /// The number of ranks.
    pub fn num_ranks(&self) -> usize {
        self.blocks.len()
    }

    /// The number of values from each rank.
    pub fn counts(&self) -> Vec<usize> {
        self.blocks
            .iter()
            .map(|block| block.len() / const { value_size::<T>() })
            .collect()
    }

    /// The values from one rank, `None` if the group has no such rank.
    pub fn get(&self, rank: Rank) -> Option<Cow<'_, [T]>> {
        self.blocks.get(rank.index()).map(Buffer::whole_values)
    }

    /// The values from each rank, in rank order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Cow<'_, [T]>> {
        self.blocks.iter().map(Buffer::whole_values)
    }

    /// All values in rank order: borrowed if they lie side by side, copied once otherwise.
    pub fn concat(&self) -> Cow<'_, [T]> {
        if let Some(whole) = &self.whole {
            return whole.whole_values();
        }
        let mut filled = self.blocks.iter().filter(|block| !block.is_empty());
        match (filled.next(), filled.next()) {
            (None, _) => Cow::Borrowed(&[]),
            (Some(only), None) => only.whole_values(),
            _ => {
                let mut all = Vec::with_capacity(self.counts().iter().sum());
                self.iter()
                    .for_each(|values| all.extend_from_slice(&values));
                Cow::Owned(all)
            }
        }
    }

    /// The memory of each block, in rank order.
    pub fn into_buffers(self) -> Vec<Buffer> {
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn separate(blocks: &[&[u32]]) -> Blocks<u32> {
        let buffers = blocks.iter().map(|b| Buffer::from_vec(b.to_vec()));
        Blocks::new(buffers.collect()).cast().unwrap()
    }

    #[test]
    fn concat_copies_only_what_lies_apart() {
        let apart = separate(&[&[1], &[], &[2, 3]]);
        assert!(matches!(apart.concat(), Cow::Owned(_)));
        assert_eq!(*apart.concat(), [1, 2, 3]);

        let one = separate(&[&[], &[7, 8], &[]]);
        assert!(matches!(one.concat(), Cow::Borrowed(_)));
        assert_eq!(*one.concat(), [7, 8]);

        assert!(separate(&[&[], &[]]).concat().is_empty());

        let whole = Buffer::from_vec(vec![1u32, 2, 3]);
        let together = Blocks::contiguous(whole, &[4, 0, 8])
            .unwrap()
            .cast::<u32>()
            .unwrap();
        assert!(matches!(together.concat(), Cow::Borrowed(_)));
        assert_eq!(*together.concat(), [1, 2, 3]);
        assert_eq!(together.counts(), apart.counts());
        assert!(together.iter().eq(apart.iter()));
        assert_eq!(together.get(Rank::new(2)).as_deref(), Some(&[2, 3][..]));
        assert_eq!(together.get(Rank::new(3)), None);
    }

    #[test]
    fn lengths_are_checked() {
        let whole = Buffer::from(vec![0u8; 6]);
        assert!(matches!(
            Blocks::contiguous(whole.clone(), &[4, 4]),
            Err(CommError::CountsSum { len: 6, .. })
        ));
        // 6 bytes are 3 values, but neither block is a whole number of them.
        let blocks = Blocks::contiguous(whole, &[3, 3]).unwrap();
        assert_eq!(
            blocks.cast::<u16>().unwrap_err(),
            CommError::ElementSize {
                len: 3,
                element_size: 2
            }
        );
    }
}
