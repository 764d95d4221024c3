//! Randomness from the system: for identities, nonces and jitter.

/// Returns a random number that is not zero.
pub(crate) fn number() -> Result<u64, getrandom::Error> {
    loop {
        let number = getrandom::u64()?;
        if number != 0 {
            return Ok(number);
        }
    }
}
