//! Planted defects: each a small change of one file that breaks the promise of privacy, and the
//! test that has to notice. `comity-mutants` plants them one by one; see [`Mutant`].

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// Where the mutants lie, from the project's folder.
pub const FOLDER: &str = "tests/mutants";

/// One planted defect: a file of [`FOLDER`], named after it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What is wrong with it, in a sentence.
    pub what: String,
    /// The source that it changes, from the project's folder.
    pub file: String,
    /// What is replaced; occurs once in `file`.
    pub find: String,
    /// By what.
    pub replace: String,
    /// The integration test (a file of some crate's `tests/`) that holds `test`.
    pub target: String,
    /// The test that must fail, and by itself: a mutant that does not compile is no proof.
    pub test: String,
}

impl Mutant {
    /// All mutants of the project at `root`, in the order of the files that they change.
    ///
    /// # Errors
    /// If there is none, one cannot be read, or one's `find` is not once in its file.
    pub fn read_all(root: &Path) -> anyhow::Result<Vec<Self>> {
        let folder = root.join(FOLDER);
        let mut mutants = Vec::new();
        let entries = fs::read_dir(&folder)
            .with_context(|| format!("{} cannot be read", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                let text = fs::read_to_string(&path)?;
                let mutant: Self =
                    toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                mutants.push(Self { name, ..mutant });
            }
        }
        ensure!(!mutants.is_empty(), "{} holds no mutant", folder.display());
        mutants.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
        for mutant in &mutants {
            mutant.planted(root)?;
        }
        Ok(mutants)
    }

    /// The text of the mutant's file with the defect in it.
    ///
    /// # Errors
    /// If the file cannot be read, or does not hold what is to be replaced exactly once.
    pub fn planted(&self, root: &Path) -> anyhow::Result<String> {
        let text = fs::read_to_string(root.join(&self.file))
            .with_context(|| format!("mutant {}: {} cannot be read", self.name, self.file))?;
        let n_found = text.matches(&self.find).count();
        ensure!(
            n_found == 1,
            "mutant {}: {} holds {:?} {n_found} times; adapt {FOLDER}/{}.toml to the source, so \
             that it plants the same defect once",
            self.name,
            self.file,
            self.find,
            self.name
        );
        ensure!(self.find != self.replace, "mutant {} changes nothing", self.name);
        Ok(text.replacen(&self.find, &self.replace, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `make mutants` plants and kills them; this tells at once when a source has moved on.
    #[test]
    fn every_mutant_fits_the_sources_and_names_a_test() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mutants = Mutant::read_all(root).unwrap();
        for needed in [
            "half-noise",
            "no-clip",
            "mean-for-sum",
            "shuffle-for-poisson",
            "reused-seed",
            "nan-not-dropped",
            "private-divisor",
            "metric-in-clear",
        ] {
            assert!(mutants.iter().any(|mutant| mutant.name == needed), "{needed} is not planted");
        }
        for mutant in mutants {
            let crates = ["privacy", "burn-models", "simulator"];
            let path = format!("tests/{}.rs", mutant.target);
            let n_found = crates
                .iter()
                .filter_map(|folder| fs::read_to_string(root.join(folder).join(&path)).ok())
                .filter(|text| text.contains(&format!("fn {}()", mutant.test)))
                .count();
            assert_eq!(n_found, 1, "{}: {} in {path}", mutant.name, mutant.test);
        }
    }
}
