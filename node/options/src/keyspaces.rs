//! Options of keyspaces.

use keyspace::check_name;

use super::read::{OptionError, Values};
use super::{KeyspaceNames, check_address};

/// The largest value that a client of etcd can write fits into a quarter of it.
const MIN_READ_BYTES: usize = 8 << 20;
/// The most listeners of single keyspaces.
const MAX_LISTENERS: usize = 64;

/// Reads the names that etcd's clients dial.
pub(super) fn names(values: &mut Values) -> Result<KeyspaceNames, OptionError> {
    Ok(KeyspaceNames {
        fallback: fallback(values)?,
        services: services(values)?,
        listen: listen(values)?,
    })
}

fn fallback(values: &mut Values) -> Result<Option<String>, OptionError> {
    let key = "fallback_keyspace";
    let name = values.text_or_default(key);
    if name == "none" {
        return Ok(None);
    }
    match check_name(&name) {
        Ok(()) => Ok(Some(name)),
        Err(refusal) => Err(values.error(key, format!("`{name}`: {refusal}"))),
    }
}

fn services(values: &mut Values) -> Result<Vec<String>, OptionError> {
    let key = "service_names";
    let Some(text) = values.text(key) else {
        return Ok(Vec::new());
    };
    let names = text.split(',').map(str::trim);
    let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    for name in &names {
        if name.len() > 253 || !name.chars().all(fine) {
            let reason = format!("`{name}` is not the name of a service such as db.prod.svc");
            return Err(values.error(key, reason));
        }
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Reads the listeners of single keyspaces.
fn listen(values: &mut Values) -> Result<Vec<(String, String)>, OptionError> {
    let key = "keyspace_listen";
    let Some(text) = values.text(key) else {
        return Ok(Vec::new());
    };
    let parts = text.split(',').map(str::trim);
    let mut listeners = Vec::new();
    for part in parts.filter(|part| !part.is_empty()) {
        let Some((name, address)) = part.split_once('=') else {
            let reason =
                format!("`{part}` is not a keyspace with an address such as default=0.0.0.0:2379");
            return Err(values.error(key, reason));
        };
        if let Err(refusal) = check_name(name) {
            return Err(values.error(key, format!("`{name}`: {refusal}")));
        }
        let address = check_address(address).map_err(|reason| values.error(key, reason))?;
        listeners.push((name.to_owned(), address));
    }
    if listeners.len() > MAX_LISTENERS {
        let reason = format!("a node has at most {MAX_LISTENERS} listeners of single keyspaces");
        return Err(values.error(key, reason));
    }
    Ok(listeners)
}

/// Reads the budget of reads.
pub(super) fn max_read_bytes(values: &mut Values) -> Result<usize, OptionError> {
    values.number("max_keyspace_read_bytes", MIN_READ_BYTES, 1 << 40)
}
