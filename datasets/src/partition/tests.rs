use proptest::prelude::*;

use super::draws::log_gamma_variate;
use super::*;

const IID: Partition = Partition::Iid;

fn dirichlet(alpha: f64) -> Partition {
    Partition::Dirichlet { alpha, rows_min: None }
}

fn quantity(sizes: Sizes) -> Partition {
    Partition::Quantity { sizes }
}

fn column(dealt: bool) -> Partition {
    Partition::Column { column: Column::Index(0), values: None, dealt }
}

fn listed(values: &[&[&str]]) -> Partition {
    let list = |values: &&[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let values = Some(values.iter().map(list).collect());
    Partition::Column { column: Column::Index(0), values, dealt: false }
}

/// As many groups as `names`, in turn.
fn groups(names: &[&str], n_rows: usize) -> Groups {
    let of_row = (0..n_rows).map(|row| (row % names.len()) as u32).collect();
    Groups::new(names.iter().map(|name| (*name).to_owned()).collect(), of_row)
}

fn sizes(clients: &[Vec<usize>]) -> Vec<usize> {
    clients.iter().map(Vec::len).collect()
}

fn labels(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7 % 10) as u32).collect()
}

fn assert_is_partition(clients: &[Vec<usize>], n_rows: usize) {
    let mut all: Vec<usize> = clients.concat();
    all.sort_unstable();
    assert_eq!(all, (0..n_rows).collect::<Vec<_>>());
    assert!(clients.iter().all(|rows| !rows.is_empty() && rows.is_sorted()));
}

proptest! {
    #[test]
    fn splits_are_partitions(
        n_rows in 1usize..400,
        n_clients in 1usize..12,
        alpha in prop_oneof![Just(0.001), Just(0.1), 0.2f64..200.0],
        per_client in 1usize..5,
        rows_min in 0usize..40,
        seed: u64,
    ) {
        let n_least = rows_min.max(1);
        for partition in [
            IID,
            dirichlet(alpha),
            Partition::Dirichlet { alpha, rows_min: Some(rows_min) },
            Partition::Shards { per_client },
            quantity(Sizes::Dirichlet { alpha }),
            quantity(Sizes::PowerLaw { exponent: alpha }),
            column(true),
        ] {
            let groups = groups(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"], n_rows);
            match partition.split(&labels(n_rows), Some(&groups), n_clients, seed) {
                Ok(clients) => {
                    prop_assert_eq!(clients.len(), n_clients);
                    // Eleven values, of which the last ones are missing where there are few rows.
                    if n_rows >= 11 || partition != column(true) {
                        assert_is_partition(&clients, n_rows);
                    }
                    if matches!(partition, Partition::Dirichlet { rows_min: Some(_), .. }) {
                        prop_assert!(clients.iter().all(|rows| rows.len() >= n_least));
                    }
                }
                Err(PartitionError::TooFewRows { .. }) => {
                    prop_assert!(n_clients * n_least > n_rows)
                }
                Err(PartitionError::Shards { .. }) => prop_assert!(n_clients * per_client > n_rows),
                Err(error) => {
                    let gave_up = matches!(error, PartitionError::EmptyClient { .. });
                    prop_assert!(gave_up && partition == dirichlet(alpha), "{}", error);
                }
            }
        }
    }
}

#[test]
fn a_split_depends_on_the_seed_only() {
    for partition in [
        IID,
        dirichlet(0.5),
        Partition::Dirichlet { alpha: 0.1, rows_min: Some(20) },
        Partition::Shards { per_client: 2 },
        quantity(Sizes::Dirichlet { alpha: 0.5 }),
        quantity(Sizes::PowerLaw { exponent: 1.0 }),
        column(true),
    ] {
        let groups = groups(&["a", "b", "c", "d", "e", "f", "g"], 500);
        let split = |seed| partition.split(&labels(500), Some(&groups), 3, seed).unwrap();
        assert_eq!(split(1), split(1), "{partition:?}");
        assert_ne!(split(1), split(2), "{partition:?}");
    }
}

/// Pinned, so that a published experiment can be repeated with a later version.
#[test]
fn splits_are_the_same_on_every_machine() {
    let groups = groups(&["a", "b", "c", "d", "e", "f", "g"], 1000);
    for (partition, expected, first) in [
        (IID, [334, 333, 333], [0, 3, 7, 9]),
        (dirichlet(0.5), [377, 211, 412], [0, 1, 3, 5]),
        (Partition::Dirichlet { alpha: 0.1, rows_min: Some(300) }, [359, 300, 341], [3, 6, 7, 9]),
        (Partition::Shards { per_client: 2 }, [334, 333, 333], [1, 4, 7, 11]),
        (quantity(Sizes::Dirichlet { alpha: 0.5 }), [183, 170, 647], [1, 4, 5, 10]),
        (quantity(Sizes::PowerLaw { exponent: 1.0 }), [545, 273, 182], [0, 1, 2, 3]),
        (column(true), [429, 285, 286], [1, 2, 3, 8]),
    ] {
        let clients = partition.split(&labels(1000), Some(&groups), 3, 7).unwrap();
        assert_eq!(
            (sizes(&clients), &clients[0][..4]),
            (expected.to_vec(), &first[..]),
            "{partition:?}"
        );
    }
}

/// McMahan et al. 2017: with two shards of one label's size or less, a client has few classes.
#[test]
fn shards_hold_few_classes_and_are_of_one_size() {
    let labels = labels(1000);
    let clients = Partition::Shards { per_client: 2 }.split(&labels, None, 10, 1).unwrap();
    assert_eq!(sizes(&clients), [100; 10]);
    for rows in &clients {
        let classes: std::collections::BTreeSet<u32> = rows.iter().map(|r| labels[*r]).collect();
        // 20 shards of 50 rows; each class has exactly two of them.
        assert!(classes.len() <= 2, "{classes:?}");
    }
    let whole = Partition::Shards { per_client: 1 }.split(&labels, None, 10, 1).unwrap();
    assert!(whole.iter().all(|rows| rows.iter().all(|r| labels[*r] == labels[rows[0]])));
}

#[test]
fn clients_of_skewed_sizes_have_all_classes_and_one_row_at_least() {
    let labels = labels(20_000);
    for skew in [Sizes::Dirichlet { alpha: 0.2 }, Sizes::PowerLaw { exponent: 1.5 }] {
        let clients = quantity(skew).split(&labels, None, 50, 3).unwrap();
        let mut sizes = sizes(&clients);
        sizes.sort_unstable();
        assert!(sizes[0] >= 1 && sizes[49] > 20 * sizes[24], "{skew:?}: {sizes:?}");
        let largest = clients.iter().max_by_key(|rows| rows.len()).unwrap();
        let share = largest.iter().filter(|r| labels[**r] == 3).count() as f64 / sizes[49] as f64;
        // A tenth, within 5 standard errors: false alarm below 1e-6.
        assert!((share - 0.1).abs() < 5.0 * (0.09 / sizes[49] as f64).sqrt(), "{skew:?}: {share}");
    }
    let even = quantity(Sizes::Dirichlet { alpha: 1e5 }).split(&labels, None, 4, 3).unwrap();
    assert!(even.iter().all(|rows| (4_900..5_100).contains(&rows.len())));
    let law = quantity(Sizes::PowerLaw { exponent: 1.0 }).split(&labels, None, 3, 3).unwrap();
    let mut law = sizes(&law);
    law.sort_unstable();
    // Shares 1 : 1/2 : 1/3 of 20,000, of which sum 11/6.
    assert_eq!(law, [3_637, 5_455, 10_908]);
}

#[test]
fn more_clients_than_a_dirichlet_split_would_feed_are_topped_up() {
    let labels = labels(6_000);
    let split = |rows_min| {
        let partition = Partition::Dirichlet { alpha: 0.05, rows_min };
        partition.split(&labels, None, 1_000, 1)
    };
    assert!(matches!(split(None), Err(PartitionError::EmptyClient { .. })));
    let clients = split(Some(2)).unwrap();
    assert_is_partition(&clients, 6_000);
    assert!(clients.iter().all(|rows| rows.len() >= 2));
    let largest = clients.iter().map(Vec::len).max().unwrap();
    assert!(largest > 20, "still skewed: {largest}");
    assert_eq!(sizes(&split(Some(6)).unwrap()), [6; 1_000]);
    let error = split(Some(7)).unwrap_err().to_string();
    assert!(error.contains("1000 clients with at least 7 rows") && error.contains("6000 rows"));
}

#[test]
fn a_value_of_a_column_is_a_client_or_is_grouped() {
    let groups = groups(&["10", "9", "2"], 30).sorted();
    assert_eq!(groups.names(), ["2", "9", "10"], "numbers go by value");
    let labels = labels(30);
    let split = |partition: Partition, n| partition.split(&labels, Some(&groups), n, 1);
    let each = split(column(false), 3).unwrap();
    assert_eq!(each, groups.rows());
    // Row 0 says "10", which is the last of the values.
    assert!(each[2].contains(&0));
    let error = split(column(false), 2).unwrap_err().to_string();
    assert!(error.contains("3 values of the column but 2 clients"), "{error}");
    assert!(error.contains("dealt = true") && error.contains("values = [["), "{error}");
    let error = split(column(false), 4).unwrap_err().to_string();
    assert!(error.contains("fewer clients"), "{error}");
    let dealt = split(column(true), 2).unwrap();
    assert_eq!(sizes(&dealt), [20, 10]);
    assert!(split(column(true), 4).is_err());

    let grouped = split(listed(&[&["9"], &["2", "10"]]), 2).unwrap();
    assert_eq!(grouped[0], each[1]);
    assert_eq!(grouped[1].len(), 20);
    for (partition, expected) in [
        (listed(&[&["9", "2"], &["10", "9"]]), "\"9\" of `values` is listed twice"),
        (listed(&[&["9", "2"], &["11"]]), "\"11\" of `values` is not in the column"),
        (listed(&[&["9"], &["10"]]), "1 values of the column stand in no list"),
        (listed(&[&["9"], &["10"], &["2"]]), "3 lists of values but 2 clients"),
        (listed(&[&["9", "2", "10"], &[]]), "at least 1 rows each"),
        (Partition::Sources, "3 sources but 2 clients"),
        (Partition::Folder { dir: None }, "3 sub-folders but 2 clients"),
    ] {
        let error = split(partition, 2).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(split(Partition::Sources, 3).unwrap(), each);
    let error = column(false).split(&labels, None, 3, 1).unwrap_err();
    assert!(matches!(error, PartitionError::NoGroups(_)), "{error}");
    assert!(!format!("{groups:?}").contains("10"), "{groups:?}");
    assert_eq!(groups.subset(&[2, 0]).of_row(), [groups.of_row()[2], 2]);
}

#[test]
fn a_large_alpha_is_nearly_even_and_a_small_one_is_not() {
    let largest = |alpha| {
        let clients = dirichlet(alpha).split(&labels(10_000), None, 4, 3).unwrap();
        clients.iter().map(Vec::len).max().unwrap()
    };
    assert!(largest(1e4) < 2_700);
    assert!(largest(0.2) > 2_900);
}

/// Mean and variance of Gamma(a) are both a. False alarm: 6 standard errors, below 1e-8.
#[test]
fn gamma_variates_have_the_right_mean() {
    let mut rng = ChaCha20Rng::from_seed([9; 32]);
    for alpha in [0.3, 1.0, 5.0] {
        let n = 40_000;
        let sum: f64 = (0..n).map(|_| libm::exp(log_gamma_variate(alpha, &mut rng))).sum();
        let mean = sum / f64::from(n);
        assert!((mean - alpha).abs() < 6.0 * (alpha / f64::from(n)).sqrt(), "{alpha}: {mean}");
    }
}

#[test]
fn impossible_splits_are_refused() {
    let split = |partition: Partition, n| partition.split(&labels(5), None, n, 0);
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = split(dirichlet(alpha), 2).unwrap_err();
        assert!(matches!(error, PartitionError::Alpha(_)));
        let error = split(quantity(Sizes::Dirichlet { alpha }), 2).unwrap_err();
        assert!(matches!(error, PartitionError::Alpha(_)));
        let error = split(quantity(Sizes::PowerLaw { exponent: alpha }), 2).unwrap_err();
        assert!(matches!(error, PartitionError::Exponent(_)));
    }
    for per_client in [0, 3, usize::MAX] {
        let error = split(Partition::Shards { per_client }, 2).unwrap_err();
        assert!(matches!(error, PartitionError::Shards { .. }), "{error}");
    }
    assert_eq!(split(IID, 0), Err(PartitionError::NoClients));
    let error = split(IID, 6).unwrap_err();
    assert_eq!(error, PartitionError::TooFewRows { n_clients: 6, rows_min: 1, n_rows: 5 });
    let error = dirichlet(1e-3).split(&[0; 50], None, 40, 0).unwrap_err();
    assert!(matches!(error, PartitionError::EmptyClient { .. }));
}
