//! One matrix product, which every convolution and every linear map is made of.
//!
//! `c = a b`, or `c += a b`, where a row of `a` begins wherever a table says: the windows of an image
//! are rows as they lie, and nothing is copied together. A tile of `c` stays in registers while the
//! sum runs; its vectors lie along the columns, so each value is summed in one order, whatever the
//! width of the machine's vectors.

use fearless_simd::prelude::*;
use fearless_simd::{Level, Simd, dispatch};

use super::strip::{One, Strip, Two};

/// Values that must follow the last one of whatever is read as a vector: a read may pass the end of
/// a row, and what it finds there is not used.
pub(super) const SLACK: usize = 16;

/// Most rows of a tile; with two vectors a row they and the operands fit 32 registers.
const ROWS_MAX: usize = 8;

/// Where rows begin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    /// One after the other, this far apart.
    Apart(usize),
    /// Wherever the table says.
    At(&'a [usize]),
}

impl Rows<'_> {
    #[inline(always)]
    fn start(self, row: usize) -> usize {
        match self {
            Self::Apart(step) => row * step,
            Self::At(starts) => starts[row],
        }
    }
}

/// `c = a b`, with the inner dimension in segments of `k`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a> {
    /// Rows of `c`.
    pub(super) m: usize,
    /// Columns of `c`.
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) n_segments: usize,
    pub(super) a: &'a [f32],
    pub(super) a_rows: Rows<'a>,
    /// From one value of a segment to the next.
    pub(super) a_step: usize,
    /// From one segment to the next.
    pub(super) a_segment: usize,
    /// Rows of `n` values and more; followed by [`SLACK`] values.
    pub(super) b: &'a [f32],
    pub(super) b_row: usize,
    pub(super) b_segment: usize,
    /// What the sums begin with, `[n]` and [`SLACK`]; `None`: zero.
    pub(super) start: Option<&'a [f32]>,
    pub(super) c_rows: Rows<'a>,
    /// Adds to what is in `c`.
    pub(super) adds: bool,
}

impl Product<'_> {
    /// Computes the product into `c`.
    pub(super) fn write(&self, level: Level, c: &mut [f32]) {
        if self.m > 0 && self.n > 0 {
            dispatch!(level, simd => write(simd, self, c));
        }
    }
}

fn write<S: Simd>(simd: S, product: &Product<'_>, c: &mut [f32]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let width = S::f32s::LEN;
            // The operands and a tile of 8 by 2 need more registers than AVX2 has.
            let rows_max = if width == 8 { 6 } else { ROWS_MAX };
            let n_tiles = product.m.div_ceil(rows_max);
            let mut column = 0;
            while column < product.n {
                let is_wide = product.n - column > width;
                let mut row = 0;
                for tile in 0..n_tiles {
                    // As even as they go, so that no tile is left with a single row.
                    let rows = (product.m - row).div_ceil(n_tiles - tile);
                    if is_wide {
                        tile_of::<S, Two<S>>(simd, product, rows, row, column, c);
                    } else {
                        tile_of::<S, One<S>>(simd, product, rows, row, column, c);
                    }
                    row += rows;
                }
                column += if is_wide { 2 * width } else { width };
            }
        },
    );
}

#[inline(always)]
fn tile_of<S: Simd, T: Strip<S>>(
    simd: S,
    product: &Product<'_>,
    rows: usize,
    row: usize,
    column: usize,
    c: &mut [f32],
) {
    match rows {
        1 => one::<S, T>(simd, product, row, column, c),
        2 => two::<S, T>(simd, product, row, column, c),
        3 => three::<S, T>(simd, product, row, column, c),
        4 => four::<S, T>(simd, product, row, column, c),
        5 => five::<S, T>(simd, product, row, column, c),
        6 => six::<S, T>(simd, product, row, column, c),
        7 => seven::<S, T>(simd, product, row, column, c),
        _ => eight::<S, T>(simd, product, row, column, c),
    }
}

/// A tile of as many rows as names are given, from `row` on, and of the columns of `T` from `column` on.
macro_rules! tile {
    ($name:ident, $($i:literal $a:ident $sums:ident),+) => {
        #[inline(always)]
        fn $name<S: Simd, T: Strip<S>>(
            simd: S,
            product: &Product<'_>,
            row: usize,
            column: usize,
            c: &mut [f32],
        ) {
            let start = match product.start {
                Some(start) => T::load(simd, &start[column..]),
                None => T::zero(simd),
            };
            $(let mut $sums = start;)+
            let (step, b_row) = (product.a_step, product.b_row);
            let span = (product.k - 1) * step + 1;
            for segment in 0..product.n_segments {
                let a = &product.a[segment * product.a_segment..];
                $(let $a = &a[product.a_rows.start(row + $i)..][..span];)+
                let mut b = &product.b[segment * product.b_segment + column..];
                let mut at = 0;
                while at < span {
                    let right = T::load(simd, b);
                    $($sums = $sums.add_product(S::f32s::splat(simd, $a[at]), right);)+
                    b = b.get(b_row..).unwrap_or(&[]);
                    at += step;
                }
            }
            let n = T::LEN.min(product.n - column);
            $(
                let to = &mut c[product.c_rows.start(row + $i) + column..][..n];
                $sums.write(simd, product.adds, to);
            )+
        }
    };
}

tile!(one, 0 a0 sums0);
tile!(two, 0 a0 sums0, 1 a1 sums1);
tile!(three, 0 a0 sums0, 1 a1 sums1, 2 a2 sums2);
tile!(four, 0 a0 sums0, 1 a1 sums1, 2 a2 sums2, 3 a3 sums3);
tile!(five, 0 a0 sums0, 1 a1 sums1, 2 a2 sums2, 3 a3 sums3, 4 a4 sums4);
tile!(six, 0 a0 sums0, 1 a1 sums1, 2 a2 sums2, 3 a3 sums3, 4 a4 sums4, 5 a5 sums5);
tile!(
    seven,
    0 a0 sums0, 1 a1 sums1, 2 a2 sums2, 3 a3 sums3, 4 a4 sums4, 5 a5 sums5, 6 a6 sums6
);
tile!(
    eight,
    0 a0 sums0, 1 a1 sums1, 2 a2 sums2, 3 a3 sums3, 4 a4 sums4, 5 a5 sums5, 6 a6 sums6, 7 a7 sums7
);
