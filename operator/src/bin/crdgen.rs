//! Generates files from the resources' Rust types: `crdgen [folder]` writes the definitions into `crds/` and their references
//! into `docs/` of a checkout, by default the current folder.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shardkv_operator::{crd, reference};

fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1);
    let folder = folder.map_or_else(|| PathBuf::from("."), PathBuf::from);
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let definitions = crd::definitions()?.into_iter();
    let definitions = definitions.map(|(name, text)| (Path::new("crds").join(name), text));
    let pages = reference::pages()?.into_iter();
    let pages = pages.map(|(name, text)| (PathBuf::from(name), text));
    for (name, text) in definitions.chain(pages) {
        let file = folder.join(name);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(file, text)?;
    }
    Ok(())
}
