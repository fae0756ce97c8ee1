//! One bit for each row of an index.

#[derive(Debug, Clone, Default)]
pub(super) struct Bits(Vec<u64>);

fn place(bit: usize) -> (usize, u64) {
    (bit / 64, 1 << (bit % 64))
}

impl Bits {
    pub(super) fn new(bits: usize) -> Self {
        Self(vec![0; bits.div_ceil(64)])
    }

    /// Sets a bit; whether it was clear.
    pub(super) fn set(&mut self, bit: usize) -> bool {
        let (word, mask) = place(bit);
        match self.0.get_mut(word) {
            Some(word) => {
                let was_clear = *word & mask == 0;
                *word |= mask;
                was_clear
            }
            None => false,
        }
    }

    pub(super) fn get(&self, bit: usize) -> bool {
        let (word, mask) = place(bit);
        self.0.get(word).is_some_and(|word| word & mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_set_once_and_touches_no_other() {
        let mut bits = Bits::new(130);
        for bit in [0, 63, 64, 129] {
            assert!(!bits.get(bit));
            assert!(bits.set(bit));
            assert!(!bits.set(bit));
            assert!(bits.get(bit));
        }
        assert_eq!((0..130).filter(|bit| bits.get(*bit)).count(), 4);
    }
}
