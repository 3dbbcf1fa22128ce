//! The rules of the repository, checked like any other fact.
//!
//! Each test looks at the manifests, at cargo's own answer, or at the text of the sources, and
//! fails with the offender's name and the remedy. The allowed edges are those of
//! `ARCHITECTURE.md`; a new one is changed in both places, in a commit of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// Package, floor, and what it may depend on. `tests` and `benches` may use anything.
const HOUSE: [(&str, u32, &[&str]); 12] = [
    ("privacy", 0, &[]),
    ("federation", 1, &["privacy"]),
    ("journal", 1, &[]),
    ("proto", 2, &["federation", "privacy"]),
    ("certs", 2, &["federation"]),
    ("datasets", 2, &[]),
    ("burn-models", 2, &["datasets", "federation", "privacy"]),
    ("coordinator", 3, &["certs", "federation", "journal", "privacy", "proto"]),
    (
        "client",
        3,
        &["burn-models", "certs", "datasets", "federation", "journal", "privacy", "proto"],
    ),
    ("simulator", 3, &["burn-models", "datasets", "federation", "privacy"]),
    ("tests", 4, &[]),
    ("benches", 4, &[]),
];
/// Crates that nothing else may depend on, and that may depend on anything.
const TOP_FLOOR: u32 = 4;
const PURE: [&str; 2] = ["privacy", "federation"];

/// What may not be linked into a package, directly or through another; a trailing `*` is a prefix.
const BANS: [(&str, &[&str]); 9] = [
    ("privacy", &["tokio", "tonic", "sled", "burn*", "hyper", "rustls"]),
    ("federation", &["tokio", "tonic", "sled", "burn*", "hyper", "rustls"]),
    ("journal", &["tokio", "tonic", "burn*", "rustls"]),
    ("datasets", &["tokio", "tonic", "sled", "burn*", "rustls"]),
    ("proto", &["sled", "burn*"]),
    ("certs", &["tokio", "tonic", "sled", "burn*"]),
    ("burn-models", &["tokio", "tonic", "sled", "rustls"]),
    ("coordinator", &["burn*"]),
    (
        "simulator",
        &["tokio", "tonic", "sled", "rustls", "comity-proto", "comity-certs", "comity-journal"],
    ),
];
/// What no package may link: one TLS stack, one cryptographic provider.
const BANNED_EVERYWHERE: [&str; 4] = ["openssl*", "native-tls", "ring", "comity-tests"];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("`tests` lies in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo runs the tests, so it can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {}: {errors}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// The workspace's packages, by folder.
fn packages() -> BTreeMap<String, Value> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let folder = manifest.parent().unwrap().strip_prefix(root()).unwrap();
            (folder.to_str().unwrap().to_owned(), package.clone())
        })
        .collect()
}

fn floor(folder: &str) -> u32 {
    house(folder).0
}

fn house(folder: &str) -> (u32, &'static [&'static str]) {
    let (_, floor, edges) = HOUSE.iter().find(|(name, ..)| *name == folder).unwrap_or_else(|| {
        panic!("{folder} has no floor: give it one in ARCHITECTURE.md and in HOUSE")
    });
    (*floor, edges)
}

/// Files below `folder` with that ending, without what cargo or git made.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    let root = root();
    let found: Vec<PathBuf> =
        HOUSE.iter().flat_map(|(folder, ..)| files(&root.join(folder), ".rs")).collect();
    assert!(found.len() > 30, "only {} source files found", found.len());
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// `text` without comments, string for string as it stands otherwise.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// `text` up to its test module; CONVENTIONS.md wants tests last.
fn without_tests(text: &str) -> &str {
    let marks = ["#[cfg(test)]\nmod ", "#[cfg(test)]\npub(crate) mod "];
    marks.iter().filter_map(|mark| text.find(mark)).min().map_or(text, |end| &text[..end])
}

fn is_test_file(path: &Path) -> bool {
    let inside = path.strip_prefix(root()).unwrap();
    let mut parts = inside.iter().skip(1);
    parts.any(|part| part == "tests" || part == "tests.rs" || part == "benches")
}

/// Production code of one crate: path and text without its tests.
fn production(folder: &str) -> Vec<(PathBuf, String)> {
    let found: Vec<_> = files(&root().join(folder).join("src"), ".rs")
        .into_iter()
        .filter(|path| !is_test_file(path))
        .map(|path| (path.clone(), without_tests(&read(&path)).to_owned()))
        .collect();
    assert!(!found.is_empty(), "{folder}/src holds no source");
    found
}

/// Lines of `code` with one of `needles`, as `file:line`.
fn sightings(code: &[(PathBuf, String)], needles: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in code {
        for (number, line) in code_lines(text) {
            if needles.iter().any(|needle| line.contains(needle)) {
                found.push(format!("{}:{number}: {}", shown(path), line.trim()));
            }
        }
    }
    found
}

#[track_caller]
fn assert_none(offenders: &[String], remedy: &str) {
    assert!(offenders.is_empty(), "{remedy}:\n  {}", offenders.join("\n  "));
}

#[test]
fn every_member_stands_on_a_floor() {
    let members: BTreeSet<String> = packages().into_keys().collect();
    let planned: BTreeSet<String> = HOUSE.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(members, planned, "the workspace's members and HOUSE differ");
    for (folder, package) in packages() {
        assert_eq!(package["name"], format!("comity-{folder}"), "package = folder with the prefix");
    }
}

#[test]
fn edges_between_our_crates_go_down_as_the_floors_allow() {
    let (mut offenders, mut n_edges) = (Vec::new(), 0);
    for (folder, package) in packages() {
        let (from, allowed) = house(&folder);
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            let Some(used) = name.strip_prefix("comity-") else { continue };
            n_edges += 1;
            let to = floor(used);
            let sound = match dependency["kind"].as_str() {
                _ if to == TOP_FLOOR => false,
                _ if from == TOP_FLOOR => true,
                Some("dev") => to < from || (to == 2 && from == 2),
                _ => to <= from && allowed.contains(&used),
            };
            if !sound {
                offenders.push(format!("{folder} -> {used} ({})", dependency["kind"]));
            }
        }
    }
    assert!(n_edges > 20, "only {n_edges} edges found");
    assert_none(&offenders, "an edge that ARCHITECTURE.md does not allow");
}

#[test]
fn allowed_edges_are_those_that_architecture_md_shows() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let rows: BTreeMap<String, BTreeSet<String>> = text
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, _, name, edges, ..] = cells[..] else { return None };
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            HOUSE.iter().find(|(known, floor, _)| *known == name && *floor < TOP_FLOOR)?;
            let edges = edges.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Some((name.to_owned(), edges))
        })
        .collect();
    for (folder, floor, edges) in HOUSE {
        if floor < TOP_FLOOR {
            let planned: BTreeSet<String> = edges.iter().map(|edge| (*edge).to_owned()).collect();
            assert_eq!(rows.get(folder), Some(&planned), "ARCHITECTURE.md's row of {folder}");
        }
    }
}

#[test]
fn no_package_links_a_crate_that_its_floor_forbids() {
    let mut offenders = Vec::new();
    for (folder, ..) in HOUSE {
        let package = format!("comity-{folder}");
        let tree = cargo(&["tree", "-p", &package, "-e", "normal", "--prefix", "none"]);
        let linked: BTreeSet<&str> =
            tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(linked.contains(package.as_str()), "cargo tree does not know {package}");
        let bans = BANS.iter().find(|(name, _)| *name == folder).map_or(&[][..], |(_, bans)| bans);
        for ban in bans.iter().chain(&BANNED_EVERYWHERE) {
            let hit = linked.iter().filter(|name| **name != package).find(|name| {
                ban.strip_suffix('*').map_or(**name == *ban, |prefix| name.starts_with(prefix))
            });
            if let Some(name) = hit {
                offenders
                    .push(format!("{folder} links {name}; see cargo tree -p {package} -i {name}"));
            }
        }
    }
    assert_none(&offenders, "a forbidden crate");
}

/// Only a build of the whole workspace has failpoints, because the tests' package asks for them.
#[test]
fn no_program_that_is_built_by_itself_has_failpoints() {
    let features = |package: &str| cargo(&["tree", "-p", package, "-e", "normal,features"]);
    for package in ["comity-coordinator", "comity-client", "comity-simulator", "comity-journal"] {
        let tree = features(package);
        assert!(tree.contains(package));
        assert!(
            !tree.contains("fail v0") && !tree.contains("\"failpoints\""),
            "{package}:\n{tree}"
        );
    }
    assert!(features("comity-tests").contains("fail v0"), "the tests' package asks for them");
}

#[test]
fn versions_stand_only_in_the_root_manifest() {
    let (mut offenders, mut n_checked) = (Vec::new(), 0);
    let mut check = |folder: &str, section: &toml::Table| {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = section.get(kind).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, value) in dependencies {
                n_checked += 1;
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    offenders.push(format!("{folder}: {name}"));
                }
            }
        }
    };
    for folder in packages().keys() {
        let manifest: toml::Table =
            toml::from_str(&read(&root().join(folder).join("Cargo.toml"))).unwrap();
        check(folder, &manifest);
        if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
            targets.values().filter_map(toml::Value::as_table).for_each(|t| check(folder, t));
        }
    }
    assert!(n_checked > 50, "only {n_checked} dependencies found");
    assert_none(&offenders, "write `name.workspace = true` and the version in the root Cargo.toml");
}

#[test]
fn every_member_takes_the_workspace_lints() {
    let offenders: Vec<String> = packages()
        .into_keys()
        .filter(|folder| {
            let manifest: toml::Table =
                toml::from_str(&read(&root().join(folder).join("Cargo.toml"))).unwrap();
            let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            lints.and_then(toml::Value::as_bool) != Some(true)
        })
        .collect();
    assert_none(&offenders, "[lints] workspace = true is missing");
}

#[test]
fn nothing_of_ours_has_a_build_script() {
    let offenders: Vec<String> = packages()
        .into_iter()
        .filter(|(_, package)| {
            let targets = package["targets"].as_array().unwrap();
            targets.iter().any(|target| target["kind"][0] == "custom-build")
        })
        .map(|(folder, _)| folder)
        .collect();
    assert_none(&offenders, "generated code is committed, building runs no script and no protoc");
}

#[test]
fn pure_crates_ban_clocks_files_threads_and_random_order() {
    for folder in PURE {
        let text = read(&root().join(folder).join("clippy.toml"));
        let rules: toml::Table = toml::from_str(&text).unwrap();
        let banned: BTreeSet<&str> = ["disallowed-types", "disallowed-methods"]
            .iter()
            .flat_map(|key| rules[*key].as_array().unwrap())
            .map(|rule| {
                assert!(rule.get("reason").is_some(), "{folder}: a ban without a reason: {rule}");
                rule["path"].as_str().unwrap()
            })
            .collect();
        for needed in [
            "std::collections::HashMap",
            "std::collections::HashSet",
            "std::fs::File",
            "std::net::TcpStream",
            "std::sync::Mutex",
            "std::thread::spawn",
            "std::time::Instant::now",
            "std::time::SystemTime::now",
        ] {
            assert!(banned.contains(needed), "{folder}/clippy.toml does not ban {needed}");
        }
    }
}

#[test]
fn no_source_holds_unfinished_or_switched_off_code() {
    // Put together here, so that this file does not find itself.
    let needles = [
        concat!("#[ig", "nore"),
        concat!("to", "do!("),
        concat!("db", "g!("),
        concat!("unimple", "mented!("),
    ];
    let code: Vec<_> = sources().into_iter().map(|path| (path.clone(), read(&path))).collect();
    assert_none(&sightings(&code, &needles), "unfinished or switched-off code");
}

#[test]
fn privacy_noise_never_comes_from_the_backend() {
    let code: Vec<_> =
        ["privacy", "federation", "burn-models"].iter().flat_map(|f| production(f)).collect();
    let needles = ["Distribution::Normal", "::random(", ".random_like("];
    assert_none(&sightings(&code, &needles), "a backend's generator is no source of noise");
}

#[test]
fn only_the_simulator_brings_noise_of_its_own() {
    let mut n_own = 0;
    let mut offenders = Vec::new();
    for (folder, floor, _) in HOUSE {
        if folder == "simulator" || floor == TOP_FLOOR {
            continue;
        }
        for found in sightings(&production(folder), &[concat!("impl Noise", " for")]) {
            if found.starts_with("privacy/src/noise.rs:") {
                n_own += 1;
            } else {
                offenders.push(found);
            }
        }
        if folder != "privacy" {
            let literal = sightings(&production(folder), &[concat!("Randomness", " {")]);
            offenders.extend(literal);
        }
    }
    assert_eq!(n_own, 1, "privacy/src/noise.rs holds the one implementation that is deployed");
    assert_none(&offenders, "deployed code takes Randomness::from_os");
}

#[test]
fn a_deployed_program_has_one_trainer_one_network_and_one_clock() {
    let deployed: Vec<_> = ["certs", "proto", "coordinator", "client"]
        .iter()
        .flat_map(|folder| production(folder))
        .collect();
    for (needle, at) in [
        (concat!("impl Train", " for"), "client/src/trainer.rs"),
        (concat!("impl Dial", " for"), "proto/src/transport.rs"),
        (concat!("impl Listen", " for"), "proto/src/transport.rs"),
        (concat!("Outside", " {"), "client/src/outside.rs"),
        (concat!("SystemTime::", "now"), "certs/src/clock.rs"),
    ] {
        let found = sightings(&deployed, &[needle]);
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|line| line.starts_with(&format!("{at}:")));
        assert!(!here.is_empty(), "{needle} is gone from {at}: nothing was looked at");
        assert_none(&elsewhere, &format!("{needle} stands in {at} alone; tests bring their own"));
    }
}

#[test]
fn every_sample_configuration_is_read_by_a_test() {
    let root = root();
    let mut samples = files(&root.join("docs/samples"), ".toml");
    samples.extend(files(&root.join("examples"), ".toml"));
    assert!(!samples.is_empty(), "no sample configuration found");
    let tests: String = sources()
        .into_iter()
        .filter(|path| path.file_name().unwrap() != "tidy.rs")
        .map(|path| read(&path))
        .filter(|text| text.contains("#[test]") || text.contains("#[tokio::test]"))
        .collect();
    let offenders: Vec<String> = samples
        .iter()
        .map(|path| {
            let parent = path.parent().unwrap().file_name().unwrap();
            Path::new(parent).join(path.file_name().unwrap()).display().to_string()
        })
        .filter(|name| !tests.contains(name.as_str()))
        .collect();
    assert_none(&offenders, "no test names and parses this sample");
}

#[test]
fn relative_links_in_the_papers_lead_somewhere() {
    let (mut offenders, mut n_links) = (Vec::new(), 0);
    for path in files(&root(), ".md") {
        for target in links(&read(&path)) {
            n_links += 1;
            let file = target.split('#').next().unwrap();
            if !file.is_empty() && !path.parent().unwrap().join(file).exists() {
                offenders.push(format!("{}: {target}", shown(&path)));
            }
        }
    }
    assert!(n_links > 5, "only {n_links} relative links found");
    assert_none(&offenders, "a link to nothing");
}

/// Targets of relative Markdown links outside code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_fence = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
            continue;
        }
        if in_fence {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("x");
        for rest in prose.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap();
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// Papers that answer for what nobody means well, and for which numbers of it: bad inputs of TLS, of the wire,
/// updates, the protocol and the surroundings; and what a rogue coordinator does.
const TABLES: [(&str, &[std::ops::RangeInclusive<u32>]); 3] = [
    ("docs/tls.md", &[1..=20]),
    ("docs/reliability.md", &[21..=74, 85..=96]),
    ("docs/threat-model.md", &[1..=26]),
];

#[test]
fn every_bad_input_has_its_row_and_every_test_of_the_table_is_there() {
    for (paper, numbers) in TABLES {
        check_table(paper, numbers);
    }
}

fn check_table(name_of_paper: &str, numbers: &[std::ops::RangeInclusive<u32>]) {
    let paper = read(&root().join(name_of_paper));
    let tests: String = sources().iter().map(|path| read(path)).collect();
    let (mut found, mut offenders, mut last) = (Vec::new(), Vec::new(), "");
    for line in paper.lines() {
        let cells: Vec<&str> = line.split(" | ").collect();
        let [number, _, happens, .., test] = cells[..] else { continue };
        let Ok(number) = number.trim_start_matches("| ").parse::<u32>() else { continue };
        found.push(number);
        let test = test.trim_end_matches(" |");
        let name = match test {
            // Without a test, what happens has to say why.
            "–" if happens.len() > 10 => continue,
            "the same" => last,
            other => other.trim_matches('`'),
        };
        last = name;
        if name.is_empty() || !tests.contains(&format!("fn {name}(")) {
            offenders.push(format!("{number}: {test}"));
        }
    }
    assert_none(&offenders, &format!("{name_of_paper} names tests that are not there"));
    let expected: Vec<u32> = numbers.iter().cloned().flatten().collect();
    assert_eq!(found, expected, "{name_of_paper}: each number has one row, in order");
}

#[test]
fn links_are_found_in_prose_and_not_in_code() {
    let text = "see [a](docs/a.md#top), [w](https://x.y)\n```\n[c](no)\n```\n`[d](no)` [`e`](f.md)";
    assert_eq!(links(text), ["docs/a.md#top", "f.md"]);
}

#[test]
fn test_modules_are_left_out_of_production_code() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\n";
    assert_eq!(without_tests(text), "fn a() {}\n");
    assert_eq!(without_tests("#[cfg(test)]\nfn a() {}"), "#[cfg(test)]\nfn a() {}");
    assert!(is_test_file(&root().join("privacy/src/plan/tests.rs")));
    assert!(!is_test_file(&root().join("tests/src/lib.rs")));
}
