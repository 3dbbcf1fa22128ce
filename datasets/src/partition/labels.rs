//! Splits that go by the labels.

use std::collections::BTreeMap;

use chacha20::ChaCha20Rng;

use super::draws::{below, dirichlet_shares, shuffle};

/// Shuffled and dealt out.
pub(super) fn iid(n_rows: usize, n_clients: usize, rng: &mut ChaCha20Rng) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..n_rows).collect();
    shuffle(&mut rows, rng);
    let mut clients = vec![Vec::new(); n_clients];
    for (position, row) in rows.into_iter().enumerate() {
        clients[position % n_clients].push(row);
    }
    for rows in &mut clients {
        rows.sort_unstable();
    }
    clients
}

/// Each class by proportions of its own; clients may be left empty.
pub(super) fn dirichlet(
    labels: &[u32],
    n_clients: usize,
    alpha: f64,
    rng: &mut ChaCha20Rng,
) -> Vec<Vec<usize>> {
    let mut by_class = BTreeMap::<u32, Vec<usize>>::new();
    for (row, label) in labels.iter().enumerate() {
        by_class.entry(*label).or_default().push(row);
    }
    let mut clients = vec![Vec::new(); n_clients];
    for mut rows in by_class.into_values() {
        shuffle(&mut rows, rng);
        let shares = dirichlet_shares(n_clients, alpha, rng);
        let mut start = 0;
        let mut share_sum = 0.0;
        for (client, share) in clients.iter_mut().zip(&shares) {
            share_sum += share;
            let end = ((share_sum * rows.len() as f64).round() as usize).clamp(start, rows.len());
            client.extend_from_slice(&rows[start..end]);
            start = end;
        }
        // Rounding of the sum of shares must not lose a row.
        clients[n_clients - 1].extend_from_slice(&rows[start..]);
    }
    for rows in &mut clients {
        rows.sort_unstable();
    }
    clients
}

/// Lets every client that has fewer than `rows_min` rows take some, drawn at random, from the one that
/// has most. There are enough rows for all.
pub(super) fn top_up(clients: &mut [Vec<usize>], rows_min: usize, rng: &mut ChaCha20Rng) {
    for poor in 0..clients.len() {
        while clients[poor].len() < rows_min {
            // The first of the largest; it has more than `rows_min`, or the rows would not do.
            let largest = clients.iter().map(Vec::len).max().expect("there are clients");
            let rich = clients.iter().position(|rows| rows.len() == largest).expect("one has most");
            let n_taken = (largest - rows_min).min(rows_min - clients[poor].len());
            for _ in 0..n_taken {
                let place = below(clients[rich].len() as u64, rng) as usize;
                let row = clients[rich].remove(place);
                clients[poor].push(row);
            }
        }
        clients[poor].sort_unstable();
    }
}

/// Sorted by label, in the order of the file within a label, and cut; `None` if a shard would be empty.
pub(super) fn shards(
    labels: &[u32],
    n_clients: usize,
    per_client: usize,
    rng: &mut ChaCha20Rng,
) -> Option<Vec<Vec<usize>>> {
    let n_rows = labels.len();
    let n_shards = n_clients.checked_mul(per_client).filter(|n| (1..=n_rows).contains(n))?;
    let mut rows: Vec<usize> = (0..n_rows).collect();
    rows.sort_by_key(|row| labels[*row]);
    let mut shards: Vec<usize> = (0..n_shards).collect();
    shuffle(&mut shards, rng);
    // Sizes differ by at most one where the rows do not divide evenly; in 128 bits, because the
    // product of rows and shards may not fit 64.
    let start = |shard: usize| (shard as u128 * n_rows as u128 / n_shards as u128) as usize;
    let clients = shards.chunks(per_client).map(|shards| {
        let mut rows: Vec<usize> =
            shards.iter().flat_map(|&s| rows[start(s)..start(s + 1)].iter().copied()).collect();
        rows.sort_unstable();
        rows
    });
    Some(clients.collect())
}
