//! The encoding of changes of users, roles and permissions.

use types::{DecodeError, Reader, Writer};

use super::unknown;
use crate::auth::{AuthWrite, Principal, decode_permission, encode_permission, string};

const ENABLE: u8 = 0;
const DISABLE: u8 = 1;
const USER_ADD: u8 = 2;
const USER_DELETE: u8 = 3;
const CHANGE_PASSWORD: u8 = 4;
const GRANT_ROLE: u8 = 5;
const REVOKE_ROLE: u8 = 6;
const ROLE_ADD: u8 = 7;
const ROLE_DELETE: u8 = 8;
const GRANT_PERMISSION: u8 = 9;
const REVOKE_PERMISSION: u8 = 10;

pub(super) fn encode_principal(caller: &Principal, out: &mut Writer) {
    out.bytes(caller.user.as_bytes()).number(caller.revision);
}

pub(super) fn decode_principal(input: &mut Reader) -> Result<Principal, DecodeError> {
    Ok(Principal {
        user: string(input, "user")?,
        revision: input.number("auth revision")?,
    })
}

pub(super) fn encode(write: &AuthWrite, out: &mut Writer) {
    match write {
        AuthWrite::Enable { secret } => out.byte(ENABLE).bytes(secret),
        AuthWrite::Disable => out.byte(DISABLE),
        AuthWrite::UserAdd { name, hash } => {
            out.byte(USER_ADD).bytes(name.as_bytes());
            match hash {
                Some(hash) => out.byte(1).bytes(hash),
                None => out.byte(0),
            }
        }
        AuthWrite::UserDelete { name } => out.byte(USER_DELETE).bytes(name.as_bytes()),
        AuthWrite::ChangePassword { name, hash } => {
            out.byte(CHANGE_PASSWORD).bytes(name.as_bytes()).bytes(hash)
        }
        AuthWrite::GrantRole { user, role } => out
            .byte(GRANT_ROLE)
            .bytes(user.as_bytes())
            .bytes(role.as_bytes()),
        AuthWrite::RevokeRole { user, role } => out
            .byte(REVOKE_ROLE)
            .bytes(user.as_bytes())
            .bytes(role.as_bytes()),
        AuthWrite::RoleAdd { name } => out.byte(ROLE_ADD).bytes(name.as_bytes()),
        AuthWrite::RoleDelete { name } => out.byte(ROLE_DELETE).bytes(name.as_bytes()),
        AuthWrite::GrantPermission { role, permission } => {
            out.byte(GRANT_PERMISSION).bytes(role.as_bytes());
            match permission {
                Some(permission) => {
                    encode_permission(permission, out.byte(1));
                    out
                }
                None => out.byte(0),
            }
        }
        AuthWrite::RevokePermission {
            role,
            key,
            range_end,
        } => out
            .byte(REVOKE_PERMISSION)
            .bytes(role.as_bytes())
            .bytes(key)
            .bytes(range_end),
    };
}

pub(super) fn decode(input: &mut Reader) -> Result<AuthWrite, DecodeError> {
    Ok(match input.byte("change of authentication")? {
        ENABLE => AuthWrite::Enable {
            secret: input.bytes("secret")?,
        },
        DISABLE => AuthWrite::Disable,
        USER_ADD => {
            let name = string(input, "user")?;
            let has_password = input.flag("password")?;
            let hash = has_password.then(|| input.bytes("hash")).transpose()?;
            AuthWrite::UserAdd { name, hash }
        }
        USER_DELETE => AuthWrite::UserDelete {
            name: string(input, "user")?,
        },
        CHANGE_PASSWORD => AuthWrite::ChangePassword {
            name: string(input, "user")?,
            hash: input.bytes("hash")?,
        },
        GRANT_ROLE => AuthWrite::GrantRole {
            user: string(input, "user")?,
            role: string(input, "role")?,
        },
        REVOKE_ROLE => AuthWrite::RevokeRole {
            user: string(input, "user")?,
            role: string(input, "role")?,
        },
        ROLE_ADD => AuthWrite::RoleAdd {
            name: string(input, "role")?,
        },
        ROLE_DELETE => AuthWrite::RoleDelete {
            name: string(input, "role")?,
        },
        GRANT_PERMISSION => {
            let role = string(input, "role")?;
            let given = input.flag("permission")?;
            let permission = given.then(|| decode_permission(input)).transpose()?;
            AuthWrite::GrantPermission { role, permission }
        }
        REVOKE_PERMISSION => AuthWrite::RevokePermission {
            role: string(input, "role")?,
            key: input.bytes("key")?,
            range_end: input.bytes("range end")?,
        },
        value => return Err(unknown("change of authentication", value)),
    })
}
