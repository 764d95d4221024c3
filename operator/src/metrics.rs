//! What the operator counts, for `/metrics`.

/// All figures. Cheap to update; read by scrapers.
#[derive(Debug, Default)]
pub struct Metrics {}
