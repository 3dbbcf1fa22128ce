//! Vectors side by side. Each has a name, because the compiler keeps arrays of arrays of vectors in
//! memory instead of registers.

use fearless_simd::Simd;
use fearless_simd::prelude::*;

use super::LANES;

/// One or more vectors beside each other.
pub(super) trait Strip<S: Simd>: Copy {
    /// Number of values.
    const LEN: usize;

    fn zero(simd: S) -> Self;

    /// The first [`LEN`](Self::LEN) of `values`.
    fn load(simd: S, values: &[f32]) -> Self;

    /// `self + left * right`, `left` the same in all lanes of a vector.
    fn add_product(self, left: S::f32s, right: Self) -> Self;

    /// Writes as many values as `to` has, or adds them to it.
    fn write(self, simd: S, adds: bool, to: &mut [f32]);
}

macro_rules! strip {
    ($name:ident, $n:literal, $($vector:ident $i:literal),+) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name<S: Simd> {
            $($vector: S::f32s,)+
        }

        impl<S: Simd> Strip<S> for $name<S> {
            const LEN: usize = $n * S::f32s::LEN;

            #[inline(always)]
            fn zero(simd: S) -> Self {
                Self { $($vector: S::f32s::splat(simd, 0.0),)+ }
            }

            #[inline(always)]
            fn load(simd: S, values: &[f32]) -> Self {
                let width = S::f32s::LEN;
                let values = &values[..Self::LEN];
                Self { $($vector: S::f32s::from_slice(simd, &values[$i * width..][..width]),)+ }
            }

            #[inline(always)]
            fn add_product(self, left: S::f32s, right: Self) -> Self {
                Self { $($vector: left.mul_add(right.$vector, self.$vector),)+ }
            }

            #[inline(always)]
            fn write(self, simd: S, adds: bool, to: &mut [f32]) {
                let width = S::f32s::LEN;
                if to.len() == Self::LEN {
                    $(
                        let own = &mut to[$i * width..][..width];
                        let before = S::f32s::from_slice(simd, own);
                        let after = if adds { before + self.$vector } else { self.$vector };
                        after.store_slice(own);
                    )+
                } else {
                    $(
                        // By a copy: a reference into a vector would keep it in memory.
                        let mut values = [0.0; LANES];
                        self.$vector.store_slice(&mut values[..width]);
                        for (to, value) in to.iter_mut().skip($i * width).zip(&values[..width]) {
                            *to = if adds { *to + value } else { *value };
                        }
                    )+
                }
            }
        }
    };
}

strip!(One, 1, a 0);
impl<S: Simd> One<S> {
    #[inline(always)]
    pub(super) fn of(vector: S::f32s) -> Self {
        Self { a: vector }
    }
}

strip!(Two, 2, a 0, b 1);
strip!(Three, 3, a 0, b 1, c 2);
