//! A store that counts the work of an operation, as a replica does.

use std::cell::Cell;

use bytes::Bytes;
use keyspace::Store;
use keyspace::memory::MemoryStore;
use raft::StoreError;
use replica::{
    Bounds, Cursor, LOOKUP_WORK, Listed, Order, PairReader, Table, WRITE_WORK, work_of_bytes,
};

pub struct Counted<'a> {
    store: &'a mut MemoryStore,
    work: Cell<u64>,
}

struct CountedCursor<'a> {
    rows: Box<dyn Cursor + 'a>,
    work: &'a Cell<u64>,
}

fn add(work: &Cell<u64>, more: u64, bytes: usize) {
    work.set(work.get() + more + work_of_bytes(bytes as u64));
}

impl<'a> Counted<'a> {
    pub fn new(store: &'a mut MemoryStore) -> Self {
        let work = Cell::new(0);
        Self { store, work }
    }

    pub fn work(&self) -> u64 {
        self.work.get()
    }
}

impl PairReader for Counted<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.store.get(table, key)?;
        let bytes = value.as_ref().map_or(0, Bytes::len);
        add(&self.work, LOOKUP_WORK, bytes);
        Ok(value)
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        add(&self.work, LOOKUP_WORK, 0);
        let rows = self.store.cursor(table, bounds, order)?;
        let work = &self.work;
        Ok(Box::new(CountedCursor { rows, work }))
    }
}

impl Cursor for CountedCursor<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
        let row = self.rows.next()?;
        if let Some((key, listed)) = &row {
            add(self.work, 1, key.len() + listed.read());
        }
        Ok(row)
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.rows.seek(key)
    }

    fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
        self.rows.read(key, listed)
    }
}

impl Store for Counted<'_> {
    fn put(&mut self, key: Bytes, value: Bytes) {
        add(&self.work, WRITE_WORK, key.len() + value.len());
        self.store.put(key, value);
    }

    fn remove(&mut self, key: Bytes) {
        add(&self.work, WRITE_WORK, key.len());
        self.store.remove(key);
    }
}
