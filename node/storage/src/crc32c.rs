//! CRC-32C (Castagnoli), the checksum of `RocksDB`'s write-ahead log.

/// Extends the checksum `start` of some bytes by `data`; 0 is the checksum of no bytes. Handles eight bytes at a time, by tables.
pub(crate) fn extend(start: u32, data: &[u8]) -> u32 {
    let mut crc = !start;
    let look = |table: usize, byte: u32| {
        let row = TABLES.get(table).map_or(&[0; 256], |row| row);
        row.get((byte & 0xff) as usize).copied().unwrap_or(0)
    };
    let (words, rest) = data.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in words {
        let low = crc ^ u32::from_le_bytes([*a, *b, *c, *d]);
        let high = u32::from_le_bytes([*e, *f, *g, *h]);
        crc = look(7, low)
            ^ look(6, low >> 8)
            ^ look(5, low >> 16)
            ^ look(4, low >> 24)
            ^ look(3, high)
            ^ look(2, high >> 8)
            ^ look(1, high >> 16)
            ^ look(0, high >> 24);
    }
    for byte in rest {
        crc = (crc >> 8) ^ look(0, crc ^ u32::from(*byte));
    }
    !crc
}

static TABLES: [[u32; 256]; 8] = tables();

#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)]
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = crc & 1 == 1;
            crc >>= 1;
            if carry {
                crc ^= 0x82f6_3b78;
            }
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, B.4.
        assert_eq!(extend(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(extend(0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(extend(0, b"123456789"), 0xe306_9283);
        assert_eq!(extend(extend(0, b"1234"), b"56789"), 0xe306_9283);
    }
}
