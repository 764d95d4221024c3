//! Users and roles, their rows, and reads of them.

use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{Order, PairReader};
use types::{DecodeError, Reader, Writer};

use crate::Place;
use crate::keys::{end_of, split_auth};
use crate::rows::{ROLE, USER, damaged};
use crate::store::{Rows, get};

const READ: i32 = 0;
const WRITE: i32 = 1;
const READ_WRITE: i32 = 2;

/// The right that a permission gives, by etcd's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To read keys.
    Read,
    /// To put and delete keys.
    Write,
    /// Both.
    ReadWrite,
    /// A number that this version doesn't know. As in etcd, it is kept, and gives no right.
    Unknown(i32),
}

impl Right {
    /// Returns the right with etcd's number.
    pub fn from_number(number: i32) -> Self {
        match number {
            READ => Self::Read,
            WRITE => Self::Write,
            READ_WRITE => Self::ReadWrite,
            number => Self::Unknown(number),
        }
    }

    /// Returns etcd's number.
    pub fn number(self) -> i32 {
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
            Self::ReadWrite => READ_WRITE,
            Self::Unknown(number) => number,
        }
    }
}

/// A permission: a right on a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The right.
    pub right: Right,
    /// The first key.
    pub key: Bytes,
    /// The end, as etcd writes it: empty for one key, a single zero byte for no end.
    pub range_end: Bytes,
}

/// A user of a keyspace.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The hash of the password; `None` for a user who can't log in by password.
    pub hash: Option<Bytes>,
    /// The auth revision that added the user or set the password. Tokens name it, so earlier ones end.
    pub since: u64,
    /// The names of the roles, in order.
    pub roles: Vec<String>,
}

/// Shows no hash.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("since", &self.since)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// A role of a keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// The permissions, in the order of their first keys.
    pub permissions: Vec<Permission>,
}

impl User {
    /// Returns true if the user has a role.
    pub fn has(&self, role: &str) -> bool {
        self.roles.iter().any(|name| name == role)
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = USER.begin(64);
        match &self.hash {
            Some(hash) => out.byte(1).bytes(hash),
            None => out.byte(0),
        };
        out.number(self.since).number(self.roles.len() as u64);
        for role in &self.roles {
            out.bytes(role.as_bytes());
        }
        out.finish()
    }

    fn decode(row: Bytes) -> Result<Self, StoreError> {
        USER.decode(row, |input| {
            let has_password = input.flag("password")?;
            let hash = has_password.then(|| input.bytes("hash")).transpose()?;
            let since = input.number("auth revision")?;
            let mut roles = Vec::new();
            for _ in 0..input.count("roles")? {
                roles.push(string(input, "role")?);
            }
            Ok(Self { hash, since, roles })
        })
    }
}

impl Role {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = ROLE.begin(64);
        out.number(self.permissions.len() as u64);
        for permission in &self.permissions {
            encode_permission(permission, &mut out);
        }
        out.finish()
    }

    fn decode(row: Bytes) -> Result<Self, StoreError> {
        ROLE.decode(row, |input| {
            let mut permissions = Vec::new();
            for _ in 0..input.count("permissions")? {
                permissions.push(decode_permission(input)?);
            }
            Ok(Self { permissions })
        })
    }
}

pub(crate) fn encode_permission(permission: &Permission, out: &mut Writer) {
    out.number(permission.right.number().cast_unsigned().into())
        .bytes(&permission.key)
        .bytes(&permission.range_end);
}

pub(crate) fn decode_permission(input: &mut Reader) -> Result<Permission, DecodeError> {
    Ok(Permission {
        right: Right::from_number(input.number_u32("right")?.cast_signed()),
        key: input.bytes("key")?,
        range_end: input.bytes("range end")?,
    })
}

pub(crate) fn string(input: &mut Reader, what: &'static str) -> Result<String, DecodeError> {
    let bytes = input.bytes(what)?.to_vec();
    String::from_utf8(bytes).map_err(|_| DecodeError::OutOfRange(what))
}

/// Reads a user.
pub fn read_user(
    reader: &dyn PairReader,
    place: Place,
    name: &str,
) -> Result<Option<User>, StoreError> {
    let row = get(reader, &place.user(name))?;
    row.map(User::decode).transpose()
}

/// Reads a role.
pub fn read_role(
    reader: &dyn PairReader,
    place: Place,
    name: &str,
) -> Result<Option<Role>, StoreError> {
    let row = get(reader, &place.role(name))?;
    row.map(Role::decode).transpose()
}

/// Reads all users, in the order of their names.
pub fn read_users(
    reader: &dyn PairReader,
    place: Place,
) -> Result<Vec<(String, User)>, StoreError> {
    read_all(reader, &place.users(), User::decode)
}

/// Reads all roles, in the order of their names.
pub fn read_roles(
    reader: &dyn PairReader,
    place: Place,
) -> Result<Vec<(String, Role)>, StoreError> {
    read_all(reader, &place.roles(), Role::decode)
}

fn read_all<T>(
    reader: &dyn PairReader,
    prefix: &Bytes,
    decode: impl Fn(Bytes) -> Result<T, StoreError>,
) -> Result<Vec<(String, T)>, StoreError> {
    let end = end_of(prefix);
    let bounds = (
        Bound::Included(prefix.as_ref()),
        end.as_ref().map(AsRef::as_ref),
    );
    let mut cursor = Rows::new(reader, bounds, Order::Ascending)?;
    let mut all = Vec::new();
    while let Some((stored, row)) = cursor.next()? {
        let name = split_auth(&stored);
        let name = name.ok_or_else(|| damaged("a user or role", &"bad key"))?;
        all.push((name, decode(row)?));
    }
    Ok(all)
}
