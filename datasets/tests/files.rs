//! Files as institutions send them: good ones, and every bad one we could think of.

use std::fs;
use std::io::Write;
use std::path::Path;

use comity_datasets::{
    Categories, Column, Contract, DataError, Dataset, Normalise, Scale, Source, Table, write_idx,
};
use flate2::{Compression, write::GzEncoder};

/// A value that stands only in rows, so that its presence in an error is a leak.
const SECRET: &str = "31337";

fn images() -> Contract {
    Contract { shape: vec![1, 2, 2], n_classes: 3, scale: Scale::Bytes }
}

fn table(scale: Scale) -> Contract {
    Contract { shape: vec![2], n_classes: 3, scale }
}

fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn idx_source() -> Source {
    Source::Idx { images: "i".into(), labels: "l".into() }
}

fn load_idx(images_file: &[u8], labels_file: &[u8]) -> Result<comity_datasets::Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("i"), images_file).unwrap();
    fs::write(dir.path().join("l"), labels_file).unwrap();
    idx_source().load(dir.path(), &images())
}

fn load_csv(
    text: &[u8],
    label: Column,
    header: bool,
    missing: Option<&str>,
    scale: Scale,
) -> Result<comity_datasets::Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.csv"), text).unwrap();
    let missing = missing.map(str::to_owned);
    Source::Csv(Table { missing, ..Table::new("t.csv", label, header) })
        .load(dir.path(), &table(scale))
}

#[test]
fn idx_files_are_read_plain_and_gzipped() {
    let (i, l) = (idx(&[2, 2, 2], &[0, 1, 2, 3, 4, 5, 6, 255]), idx(&[2], &[2, 0]));
    for (i, l) in [(i.clone(), l.clone()), (gzip(&i), gzip(&l)), (gzip(&i), l.clone())] {
        let data = load_idx(&i, &l).unwrap();
        assert_eq!((data.len(), data.shape(), data.n_classes()), (2, &[1, 2, 2][..], 3));
        assert_eq!(data.label_counts(), [1, 0, 1]);
        let batch = data.batch(&[1], Normalise::IDENTITY);
        assert_eq!(batch.features[3], 1.0);
    }
    let with_channel = idx(&[2, 1, 2, 2], &[0; 8]);
    assert!(load_idx(&with_channel, &l).is_ok());
}

#[test]
fn written_idx_files_read_back_the_same() {
    let data = load_idx(&idx(&[3, 2, 2], &[7; 12]), &idx(&[3], &[2, 0, 1])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_idx(dir.path(), &data.subset(&[2, 0])).unwrap();
    let source = Source::Idx { images: "images.idx".into(), labels: "labels.idx".into() };
    let read = source.load(dir.path(), &images()).unwrap();
    assert_eq!(read.batch(&[0, 1], Normalise::IDENTITY), data.batch(&[2, 0], Normalise::IDENTITY));
}

#[test]
fn real_numbers_and_empty_data_are_not_written_as_idx() {
    let dir = tempfile::tempdir().unwrap();
    let reals = load_csv(b"1,2,0\n", Column::Index(2), false, None, Scale::Real).unwrap();
    assert!(matches!(write_idx(dir.path(), &reals), Err(DataError::Scale { .. })));
    assert!(matches!(write_idx(dir.path(), &reals.subset(&[])), Err(DataError::Empty { .. })));
}

#[test]
fn bad_idx_files_are_refused_with_the_reason() {
    let good_images = idx(&[2, 2, 2], &[9; 8]);
    let good_labels = idx(&[2], &[2, 0]);
    let mut cut_gzip = gzip(&good_images);
    cut_gzip.truncate(cut_gzip.len() - 6);
    let mut flipped_gzip = gzip(&good_images);
    let middle = flipped_gzip.len() - 5; // in the checksum
    flipped_gzip[middle] ^= 1;
    let float_type = [&[0, 0, 0x0d, 3], &good_images[4..]].concat();
    let huge = idx(&[u32::MAX, u32::MAX, u32::MAX], &[1; 8]);
    let large = idx(&[1 << 30, 2, 2], &[1; 8]);
    let table: &[(&str, &[u8], &[u8], &str)] = &[
        ("empty file", b"", &good_labels, "holds no rows"),
        ("two bytes", &[0, 0], &good_labels, "ends after 2 bytes"),
        ("cut header", &good_images[..9], &good_labels, "announces 16"),
        ("no values", &good_images[..16], &good_labels, "ends after 16 bytes"),
        ("cut values", &good_images[..23], &good_labels, "ends after 23 bytes"),
        ("extra byte", &[&good_images[..], &[0]].concat(), &good_labels, "goes on after the 24"),
        ("swapped", &good_labels, &good_images, "swapped"),
        ("floats", &float_type, &good_labels, "unsigned bytes"),
        ("text", b"hello, world", &good_labels, "not the IDX magic"),
        ("zero images", &idx(&[0, 2, 2], &[]), &good_labels, "holds no rows"),
        ("product overflows", &huge, &good_labels, "more than 17179869184 bytes"),
        ("header announces 4 GiB", &large, &good_labels, "announces 4294967312"),
        ("wrong shape", &idx(&[2, 4, 1], &[0; 8]), &good_labels, "the plan says [1, 2, 2]"),
        ("too many dims", &idx(&[1, 1, 1, 2, 2], &[0; 4]), &good_labels, "not the IDX magic"),
        ("more labels", &good_images, &idx(&[3], &[0; 3]), "2 images"),
        ("label out of range", &good_images, &idx(&[2], &[0, 3]), "row 1: the label"),
        ("cut gzip", &cut_gzip, &good_labels, "gzip"),
        ("flipped gzip", &flipped_gzip, &good_labels, "gzip"),
    ];
    for (name, i, l, expected) in table {
        let error = load_idx(i, l).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn an_absent_file_or_a_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = idx_source().load(dir.path(), &images()).unwrap_err().to_string();
    assert!(error.contains(&dir.path().join("i").display().to_string()), "{error}");
    fs::create_dir(dir.path().join("i")).unwrap();
    let error = idx_source().load(dir.path(), &images()).unwrap_err();
    assert!(matches!(error, DataError::Io { .. }), "{error}");
}

#[test]
fn a_contract_that_does_not_suit_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let real = Contract { scale: Scale::Real, ..images() };
    assert!(matches!(idx_source().load(dir.path(), &real), Err(DataError::Scale { .. })));
    for shape in [vec![], vec![0], vec![usize::MAX, 2]] {
        let contract = Contract { shape, ..images() };
        let error = idx_source().load(dir.path(), &contract).unwrap_err();
        assert!(matches!(error, DataError::Contract { .. }), "{error}");
    }
}

#[test]
fn csv_tables_are_read() {
    let name = || Column::Name("y".into());
    let data = load_csv(
        b"\xef\xbb\xbfy,a,b\r\n2, 0.5,-1e3\r\n0,\"1\",2\r\n",
        name(),
        true,
        None,
        Scale::Real,
    )
    .unwrap();
    let batch = data.batch(&[0, 1], Normalise::IDENTITY);
    assert_eq!(batch.features, [0.5, -1000.0, 1.0, 2.0]);
    assert_eq!(batch.labels, [2, 0]);

    let data =
        load_csv(&gzip(b"0,255,1\n51,0,2"), Column::Index(2), false, None, Scale::Bytes).unwrap();
    assert_eq!(data.batch(&[1], Normalise::IDENTITY).features, [0.2, 0.0]);

    let missing = load_csv(b"NA,1,0\n", Column::Index(2), false, Some("NA"), Scale::Real);
    let batch = missing.unwrap().batch(&[0], Normalise { mean: 3.0, std: 1.0 });
    assert_eq!(batch.features, [0.0, -2.0]);
}

#[test]
fn the_persons_of_a_table_are_told_apart_by_any_text() {
    let load = |text: &str, label: &str, person: &str| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("t.csv"), text).unwrap();
        Source::Csv(Table {
            person: Some(Column::Name(person.into())),
            missing: Some("NA".into()),
            ..Table::new("t.csv", Column::Name(label.into()), true)
        })
        .load(dir.path(), &table(Scale::Real))
    };
    let rows = "a,who,b,y\n1,Ada,2,0\n3,07,4,1\n5,Ada,NA,2\n6,7,6,0\n";
    let data = load(rows, "y", "who").unwrap();
    assert_eq!(data.rows_by_person().unwrap(), [vec![0, 2], vec![1], vec![3]]);
    assert_eq!(data.batch(&[2], Normalise::IDENTITY).features, [5.0, 0.0]);
    for (text, label, person, expected) in [
        (rows, "y", "whom", "no person column \"whom\""),
        (rows, "y", "y", "the same column"),
        ("a,who,y\n1,Ada,0\n", "y", "who", "1 columns besides"),
        ("a,who,b,y\n1,,2,0\n", "y", "who", "without its person's id"),
        ("a,who,b,y\n1,NA,2,0\n", "y", "who", "without its person's id"),
    ] {
        let error = load(text, label, person).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("t.csv"), "{error}");
        assert!(!error.contains("Ada"), "{error}");
    }
}

#[test]
fn bad_csv_tables_are_refused_with_the_reason_and_without_the_row() {
    let secret_row = format!("{SECRET},1,0\n{SECRET}x,{SECRET},1\n");
    let secret_label = format!("1,1,{SECRET}\n");
    let secret_byte = format!("1,{SECRET},0\n");
    let index = |i| Column::Index(i);
    let name = |n: &str| Column::Name(n.into());
    let real = Scale::Real;
    type Row<'a> = (&'a str, &'a [u8], Column, bool, Option<&'a str>, Scale, &'a str);
    let table: Vec<Row<'_>> = vec![
        ("empty", b"", index(2), false, None, real, "holds no rows"),
        ("empty with header", b"", name("y"), true, None, real, "holds no rows"),
        ("header only", b"a,b,y\n", name("y"), true, None, real, "holds no rows"),
        ("ragged", b"1,2,0\n1,2\n", index(2), false, None, real, "line 2: 2 cells, expected 3"),
        ("long row", b"a,b,y\n1,2,0,0\n", name("y"), true, None, real, "line 2: 4 cells"),
        ("not a number", secret_row.as_bytes(), index(2), false, None, real, "line 2, column 0"),
        ("decimal comma", b"\"1,5\",2,0\n", index(2), false, None, real, "decimals"),
        ("nan", b"nan,2,0\n", index(2), false, None, real, "not a finite number"),
        ("overflow", b"1e99,2,0\n", index(2), false, None, real, "not a finite number"),
        ("empty cell", b",2,0\n", index(2), false, None, real, "`missing = \"\"`"),
        ("other marker", b"?,2,0\n", index(2), false, Some("NA"), real, "set `missing`"),
        ("not UTF-8", b"\xff\xfe,2,0\n", index(2), false, None, real, "UTF-8"),
        ("label range", b"1,2,0\n1,2,3\n", index(2), false, None, real, "row 2: the label"),
        ("label text", secret_label.as_bytes(), index(2), false, None, real, "from 0 to 2"),
        ("negative label", b"1,2,-1\n", index(2), false, None, real, "row 1: the label"),
        ("missing label", b"1,2,NA\n", index(2), false, Some("NA"), real, "the label"),
        ("no such name", b"a,b,y\n1,2,0\n", name("z"), true, None, real, "\"z\""),
        ("name without header", b"1,2,0\n", name("y"), false, None, real, "no label column"),
        ("no such index", b"1,2,0\n", index(3), false, None, real, "no label column 3"),
        ("few columns", b"1,0\n", index(1), false, None, real, "1 columns besides the label"),
        ("semicolons", b"1;2;0\n", index(0), false, None, real, "0 columns besides"),
        ("byte range", secret_byte.as_bytes(), index(2), false, None, Scale::Bytes, "0 to 255"),
        ("missing byte", b"NA,1,0\n", index(2), false, Some("NA"), Scale::Bytes, "real"),
        ("header as row", b"a,b,y\n1,2,0\n", index(2), false, None, real, "line 1"),
    ];
    for (case, text, label, header, missing, scale, expected) in table {
        let error = load_csv(text, label, header, missing, scale).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected) || error.to_string().contains(expected), "{case}: {error}");
        assert!(!text.contains(SECRET), "{case} leaks a value: {text}");
        assert!(text.contains("t.csv"), "{case}: {text}");
    }
}

#[test]
fn fashion_mnist_is_read_where_it_is_installed() {
    let dir = Path::new("/usr/share/datasets/fashion-mnist");
    if !dir.join("t10k-images-idx3-ubyte.gz").exists() {
        eprintln!("skipped: no Fashion-MNIST in {}", dir.display());
        return;
    }
    let source = Source::Idx {
        images: "t10k-images-idx3-ubyte.gz".into(),
        labels: "t10k-labels-idx1-ubyte.gz".into(),
    };
    let contract = Contract { shape: vec![1, 28, 28], n_classes: 10, scale: Scale::Bytes };
    let data = source.load(dir, &contract).unwrap();
    assert_eq!(data.label_counts(), [1000; 10]);
}

/// A table like those that hospitals have: an unused column, categories, gaps, grades of a disease.
fn hospital() -> Table {
    Table {
        label_above: Some(0.0),
        missing: Some("?".into()),
        leave_out_missing: true,
        drop: vec![Column::Name("slope".into())],
        categories: vec![Categories {
            column: Column::Name("pain".into()),
            values: ["1", "2", "4"].map(str::to_owned).to_vec(),
            drop_first: true,
        }],
        ..Table::new("t.csv", Column::Name("num".into()), true)
    }
}

const HOSPITAL: &str =
    "age,pain,slope,num\n63,1.0,?,0\n50,4,2,3\n?,2,1,0\n41,?,1,0\n38,2.0,x,1\n44,1,1,?\n";

fn load_table(text: &str, table: Table, shape: usize) -> Result<Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.csv"), text).unwrap();
    let contract = Contract { shape: vec![shape], n_classes: 2, scale: Scale::Real };
    Source::Csv(table).load(dir.path(), &contract)
}

#[test]
fn a_real_table_is_read_as_its_configuration_says() {
    let data = load_table(HOSPITAL, hospital(), 3).unwrap();
    assert_eq!(data.labels(), [0, 1, 1]);
    // Age, and one feature each for pain 2 and 4; the dropped column may hold anything.
    let all = data.batch(&[0, 1, 2], Normalise::IDENTITY).features;
    assert_eq!(all, [63.0, 0.0, 0.0, 50.0, 0.0, 1.0, 38.0, 1.0, 0.0]);

    // A gap is the plan's mean where rows are kept, and the first category has its own feature.
    let text = HOSPITAL.replace("44,1,1,?\n", "");
    let mut table = hospital();
    table.leave_out_missing = false;
    table.categories[0].drop_first = false;
    let data = load_table(&text, table.clone(), 4).unwrap();
    assert_eq!(data.labels(), [0, 1, 0, 0, 1]);
    let gaps = data.batch(&[2, 3], Normalise { mean: 0.5, std: 0.5 }).features;
    assert_eq!(gaps, [0.0, -1.0, 1.0, -1.0, 81.0, 0.0, 0.0, 0.0]);
    // Missing labels are an error there.
    let error = load_table(HOSPITAL, table, 4).unwrap_err().to_string();
    assert!(error.contains("row 7") && error.contains("label"), "{error}");
}

#[test]
fn settings_of_a_table_that_do_not_fit_are_refused_with_what_to_do() {
    type Change = fn(&mut Table);
    for (change, expected) in [
        ((|t| t.missing = None) as Change, "leave_out_missing needs `missing`"),
        (|t| t.label_above = Some(f64::NAN), "label_above is not a finite number"),
        (|t| t.drop.push(Column::Index(3)), "`label` and `drop` name the same column"),
        (|t| t.drop.push(Column::Index(1)), "`drop` and `categories` name the same column"),
        (|t| t.drop.push(Column::Name("x".into())), "no drop column \"x\"; the file has 4 columns"),
        (|t| t.drop.clear(), "4 columns besides"),
        (|t| t.categories[0].values.truncate(1), "at least two with drop_first"),
        (|t| t.categories[0].values.push("4.0".into()), "a category is listed twice"),
        (|t| t.categories[0].values[2] = "3".into(), "line 3, column 1: not one of the categories"),
        (|t| t.label_above = None, "row 3: the label is not a whole number from 0 to 1"),
        (|t| t.categories[0].column = Column::Index(9), "no categories column 9"),
    ] {
        let mut table = hospital();
        change(&mut table);
        let error = load_table(HOSPITAL, table, 3).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains("63") && !error.contains("x,"), "{error}");
    }
    let error = load_table("age,pain,slope,num\n?,1,1,0\n", hospital(), 3).unwrap_err();
    assert!(error.to_string().contains("every row has a missing value"), "{error}");
    let text = HOSPITAL.replace("63,", "old,");
    let error = load_table(&text, hospital(), 3).unwrap_err().to_string();
    assert!(error.contains("line 2, column 0: not a number") && !error.contains("old"), "{error}");
    let text = HOSPITAL.replace("63,1.0,?,0", "63,1.0,?,inf");
    let error = load_table(&text, hospital(), 3).unwrap_err().to_string();
    assert!(error.contains("row 2: the label"), "{error}");
}

#[test]
fn a_column_says_which_rows_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| fs::write(dir.path().join("t.csv"), text).unwrap();
    let contract = Contract { shape: vec![1], n_classes: 2, scale: Scale::Real };
    let source = Source::Csv(Table::new("t.csv", Column::Name("y".into()), true));
    let load = || source.load_grouped(dir.path(), &contract, &Column::Name("site".into()));
    write("x,site,y\n1,Oslo,0\n2,Bergen,1\n3,Oslo,1\n");
    let (data, groups) = load().unwrap();
    assert_eq!(data.batch(&[0, 1, 2], Normalise::IDENTITY).features, [1.0, 2.0, 3.0]);
    assert_eq!(
        (groups.names(), groups.of_row()),
        (&["Bergen", "Oslo"].map(str::to_owned)[..], &[1, 0, 1][..])
    );
    write("x,site,y\n1,Oslo,0\n2,,1\n");
    let error = load().unwrap_err().to_string();
    assert!(error.contains("line 3, column 1") && error.contains("which client"), "{error}");
    write("x,place,y\n1,Oslo,0\n");
    assert!(load().unwrap_err().to_string().contains("no column column \"site\""));
    let error = idx_source().load_grouped(dir.path(), &contract, &Column::Index(0)).unwrap_err();
    assert!(error.to_string().contains("no columns to split by"), "{error}");
}
