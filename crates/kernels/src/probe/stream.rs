//! Reading memory as fast as it comes.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use memmap2::{MmapMut, MmapOptions};

use crate::{Isa, KernelError};

/// Bytes that a loop reads per step: eight registers of the widest kind.
const STEP: usize = 512;

/// Memory of its own pages, huge ones where the system has them, and a place in it.
#[derive(Debug)]
pub(super) struct Stream {
    memory: MmapMut,
    cursor: usize,
}

impl Stream {
    pub(super) fn new(bytes: usize) -> Result<Self, KernelError> {
        let refused = |message: String| KernelError::Memory { bytes, message };
        if bytes == 0 {
            return Err(refused("a buffer to stream has at least one".to_owned()));
        }
        let mut memory = MmapOptions::new()
            .len(bytes)
            .map_anon()
            .map_err(|e| refused(e.to_string()))?;
        // A kernel without huge pages refuses the advice, and streams from small ones.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        // Pages that were never written are all one page, which a cache holds.
        memory.fill(1);
        Ok(Self { memory, cursor: 0 })
    }

    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// The part of the next `bytes` that one of several threads reads: a run of them, in pieces
    /// where it goes around the end.
    pub(super) fn share(
        &self,
        bytes: usize,
        member: usize,
        members: usize,
    ) -> impl Iterator<Item = &[u8]> {
        let steps = bytes.div_ceil(STEP);
        let edge = |member: usize| (steps * member / members * STEP).min(bytes);
        let (mut at, mut left) = (
            (self.cursor + edge(member)) % self.len(),
            edge(member + 1) - edge(member),
        );
        std::iter::from_fn(move || {
            let piece = left.min(self.len() - at);
            let part = &self.memory[at..at + piece];
            left -= piece;
            at = 0;
            (piece > 0).then_some(part)
        })
    }

    pub(super) fn advance(&mut self, bytes: usize) {
        self.cursor = (self.cursor + bytes) % self.len();
    }
}

/// Reads everything and makes a number of it, so that no read can be left out.
pub(super) fn sum(isa: Isa, bytes: &[u8]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => {
            #[allow(unsafe_code, reason = "the instruction set was chosen at run time")]
            // SAFETY: a kernel has only instruction sets of the machine that it runs on.
            unsafe {
                sum_avx512(bytes)
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            #[allow(unsafe_code, reason = "the instruction set was chosen at run time")]
            // SAFETY: as above.
            unsafe {
                sum_avx2(bytes)
            }
        }
        _ => words(bytes),
    }
}

/// The sum of the little-endian words; of a last part of one, the sum of its bytes.
fn words(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let words = words.iter().map(|w| u64::from_le_bytes(*w));
    let tail = tail.iter().map(|&b| u64::from(b));
    words.chain(tail).fold(0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(bytes: &[u8]) -> u64 {
    let (steps, tail) = bytes.as_chunks::<STEP>();
    let mut sums = [_mm512_setzero_si512(); STEP / 64];
    for step in steps {
        for (sum, part) in sums.iter_mut().zip(step.as_chunks::<64>().0) {
            #[allow(unsafe_code, reason = "a load takes a pointer")]
            // SAFETY: `part` is 64 bytes, and the load needs no alignment.
            let part = unsafe { _mm512_loadu_si512(part.as_ptr().cast()) };
            *sum = _mm512_add_epi64(*sum, part);
        }
    }
    let total = sums.into_iter().reduce(|a, b| _mm512_add_epi64(a, b));
    let total = total.map_or(0, |t| _mm512_reduce_add_epi64(t));
    words(tail).wrapping_add(total.cast_unsigned())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    let (steps, tail) = bytes.as_chunks::<{ STEP / 2 }>();
    let mut sums = [_mm256_setzero_si256(); STEP / 64];
    for step in steps {
        for (sum, part) in sums.iter_mut().zip(step.as_chunks::<32>().0) {
            #[allow(unsafe_code, reason = "a load takes a pointer")]
            // SAFETY: `part` is 32 bytes, and the load needs no alignment.
            let part = unsafe { _mm256_loadu_si256(part.as_ptr().cast()) };
            *sum = _mm256_add_epi64(*sum, part);
        }
    }
    let total = sums.into_iter().reduce(|a, b| _mm256_add_epi64(a, b));
    let total = total.unwrap_or(_mm256_setzero_si256());
    let lanes = [
        _mm256_extract_epi64::<0>(total),
        _mm256_extract_epi64::<1>(total),
        _mm256_extract_epi64::<2>(total),
        _mm256_extract_epi64::<3>(total),
    ];
    let total = lanes.into_iter().fold(0, i64::wrapping_add);
    words(tail).wrapping_add(total.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        for len in [0, 1, 63, 64, 511, 512, 513, 3000] {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i * 37 % 251) as u8).collect();
            for isa in Isa::available() {
                assert_eq!(sum(isa, &bytes), words(&bytes), "{isa} {len}");
            }
            for at in (0..len).step_by(61) {
                let sums = |bytes: &[u8]| {
                    Isa::available()
                        .into_iter()
                        .map(|isa| sum(isa, bytes))
                        .collect::<Vec<_>>()
                };
                let before = sums(&bytes);
                bytes[at] ^= 1;
                let after = sums(&bytes);
                assert!(
                    after.iter().zip(&before).all(|(a, b)| a != b),
                    "{at} of {len}"
                );
            }
        }
    }

    #[test]
    fn shares_are_all_of_the_stream_once() {
        let mut stream = Stream::new(5000).unwrap();
        for bytes in [0, 1, 511, 4000, 5000, 12_345] {
            for members in 1..4 {
                let mut counts = vec![0; stream.len()];
                let origin = stream.memory.as_ptr() as usize;
                for member in 0..members {
                    for part in stream.share(bytes, member, members) {
                        let at = part.as_ptr() as usize - origin;
                        counts[at..at + part.len()].iter_mut().for_each(|c| *c += 1);
                    }
                }
                assert_eq!(counts.iter().sum::<usize>(), bytes);
                let most = counts.iter().max().copied().unwrap_or(0);
                assert_eq!(most, bytes.div_ceil(stream.len()), "{bytes} {members}");
            }
            stream.advance(bytes);
        }
    }
}
