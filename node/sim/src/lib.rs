//! A seeded simulator of whole clusters under faults
