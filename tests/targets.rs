//! The list of targets in `Cargo.toml`.

use std::{fs, path::Path};

#[test]
fn every_file_of_the_folder_is_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let target = match path.is_dir() {
            true if path.join("main.rs").exists() => format!("{name}/main.rs"),
            false if name.ends_with(".rs") => name.to_owned(),
            _ => continue,
        };
        assert!(manifest.contains(&format!("path = \"{target}\"")), "tests/Cargo.toml lacks tests/{target}");
    }
}
