//! Carries out changes of users, roles and permissions. The rules, their order and the refusals are etcd's; the bounds are ours.

use bytes::Bytes;

use super::rows::{Permission, Role, User, read_role, read_user, read_users};
use super::{
    AuthWrite, MAX_AUTH_BYTES, MAX_AUTH_NAME_BYTES, MAX_HASH_BYTES, MAX_ROLE_BYTES, MAX_ROLES,
    MAX_ROLES_OF_USER, MAX_SECRET_BYTES, MAX_USERS, ROOT,
};
use crate::draft::Growth;
use crate::failure::Failure;
use crate::rows::damaged;
use crate::store::{Store, get};
use crate::{Place, Record, Refusal, sizes};

/// Checks the sizes of a change, before the log and in apply.
pub(crate) fn check(write: &AuthWrite) -> Result<(), Refusal> {
    let (names, bytes): (&[&String], usize) = match write {
        AuthWrite::Enable { secret } if secret.len() > MAX_SECRET_BYTES => {
            return Err(Refusal::RequestTooLarge);
        }
        AuthWrite::Enable { .. } | AuthWrite::Disable => (&[], 0),
        AuthWrite::UserAdd { name, hash } => (&[name], hash.as_ref().map_or(0, Bytes::len)),
        AuthWrite::ChangePassword { name, hash } => (&[name], hash.len()),
        AuthWrite::UserDelete { name }
        | AuthWrite::RoleAdd { name }
        | AuthWrite::RoleDelete { name } => (&[name], 0),
        AuthWrite::GrantRole { user, role } | AuthWrite::RevokeRole { user, role } => {
            (&[user, role], 0)
        }
        AuthWrite::GrantPermission { role, .. } | AuthWrite::RevokePermission { role, .. } => {
            (&[role], 0)
        }
    };
    if bytes > MAX_HASH_BYTES || names.iter().any(|name| name.len() > MAX_AUTH_NAME_BYTES) {
        return Err(Refusal::RequestTooLarge);
    }
    Ok(())
}

/// Carries out a change. The caller stores the record.
pub(crate) fn manage(
    place: Place,
    record: &mut Record,
    write: &AuthWrite,
    store: &mut dyn Store,
) -> Result<(), Failure> {
    let mut manager = Manager {
        place,
        record,
        store,
    };
    match write {
        AuthWrite::Enable { secret } => manager.enable(secret),
        AuthWrite::Disable => {
            manager.disable();
            Ok(())
        }
        AuthWrite::UserAdd { name, hash } => manager.add_user(name, hash.clone()),
        AuthWrite::UserDelete { name } => manager.delete_user(name),
        AuthWrite::ChangePassword { name, hash } => manager.change_password(name, hash),
        AuthWrite::GrantRole { user, role } => manager.grant_role(user, role),
        AuthWrite::RevokeRole { user, role } => manager.revoke_role(user, role),
        AuthWrite::RoleAdd { name } => manager.add_role(name),
        AuthWrite::RoleDelete { name } => manager.delete_role(name),
        AuthWrite::GrantPermission { role, permission } => {
            manager.grant_permission(role, permission.as_ref())
        }
        AuthWrite::RevokePermission {
            role,
            key,
            range_end,
        } => manager.revoke_permission(role, key, range_end),
    }
}

struct Manager<'a> {
    place: Place,
    record: &'a mut Record,
    store: &'a mut dyn Store,
}

impl Manager<'_> {
    fn enable(&mut self, secret: &Bytes) -> Result<(), Failure> {
        if self.record.auth.enabled {
            return Ok(());
        }
        let root = read_user(self.store, self.place, ROOT)?;
        let root = root.ok_or(Refusal::RootUserNotExist)?;
        if !root.has(ROOT) {
            return Err(Refusal::RootRoleNotExist.into());
        }
        self.record.auth.enabled = true;
        self.record.auth.secret = secret.clone();
        Ok(())
    }

    fn disable(&mut self) {
        if self.record.auth.enabled {
            self.record.auth.enabled = false;
            self.record.auth.secret = Bytes::new();
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.record.auth.revision = self.record.auth.revision.saturating_add(1);
    }

    /// Returns true if `root` must keep what makes it root.
    fn keeps_root(&self, name: &str) -> bool {
        self.record.auth.enabled && name == ROOT
    }

    fn user(&self, name: &str) -> Result<User, Failure> {
        let user = read_user(&*self.store, self.place, name)?;
        Ok(user.ok_or(Refusal::UserNotFound)?)
    }

    fn role(&self, name: &str) -> Result<Role, Failure> {
        let role = read_role(&*self.store, self.place, name)?;
        Ok(role.ok_or(Refusal::RoleNotFound)?)
    }

    fn add_user(&mut self, name: &str, hash: Option<Bytes>) -> Result<(), Failure> {
        if name.is_empty() {
            return Err(Refusal::UserEmpty.into());
        }
        if read_user(self.store, self.place, name)?.is_some() {
            return Err(Refusal::UserExists.into());
        }
        if self.record.auth.users >= MAX_USERS {
            return Err(Refusal::AuthTooLarge.into());
        }
        let user = User {
            hash,
            since: self.record.auth.revision.saturating_add(1),
            roles: Vec::new(),
        };
        self.put_user(name, &user)?;
        self.record.auth.users += 1;
        self.changed();
        Ok(())
    }

    fn delete_user(&mut self, name: &str) -> Result<(), Failure> {
        if self.keeps_root(name) {
            return Err(Refusal::InvalidAuthMgmt.into());
        }
        self.user(name)?;
        self.remove(name, self.place.user(name))?;
        let left = self.record.auth.users.checked_sub(1);
        self.record.auth.users = left.ok_or_else(too_few)?;
        self.changed();
        Ok(())
    }

    fn change_password(&mut self, name: &str, hash: &Bytes) -> Result<(), Failure> {
        let mut user = self.user(name)?;
        user.hash = user.hash.map(|_| hash.clone());
        user.since = self.record.auth.revision.saturating_add(1);
        self.put_user(name, &user)?;
        self.changed();
        Ok(())
    }

    fn grant_role(&mut self, name: &str, role: &str) -> Result<(), Failure> {
        let mut user = self.user(name)?;
        if role != ROOT {
            self.role(role)?;
        }
        if user.has(role) {
            return Ok(());
        }
        if user.roles.len() >= MAX_ROLES_OF_USER {
            return Err(Refusal::AuthTooLarge.into());
        }
        user.roles.push(role.to_owned());
        user.roles.sort();
        self.put_user(name, &user)?;
        self.changed();
        Ok(())
    }

    fn revoke_role(&mut self, name: &str, role: &str) -> Result<(), Failure> {
        if self.keeps_root(name) && role == ROOT {
            return Err(Refusal::InvalidAuthMgmt.into());
        }
        let mut user = self.user(name)?;
        if !user.has(role) {
            return Err(Refusal::RoleNotGranted.into());
        }
        user.roles.retain(|name| name != role);
        self.put_user(name, &user)?;
        self.changed();
        Ok(())
    }

    fn add_role(&mut self, name: &str) -> Result<(), Failure> {
        if name.is_empty() {
            return Err(Refusal::RoleEmpty.into());
        }
        if read_role(self.store, self.place, name)?.is_some() {
            return Err(Refusal::RoleExists.into());
        }
        if self.record.auth.roles >= MAX_ROLES {
            return Err(Refusal::AuthTooLarge.into());
        }
        self.put_role(name, &Role::default())?;
        self.record.auth.roles += 1;
        self.changed();
        Ok(())
    }

    fn delete_role(&mut self, name: &str) -> Result<(), Failure> {
        if self.keeps_root(name) {
            return Err(Refusal::InvalidAuthMgmt.into());
        }
        self.role(name)?;
        // All is read before the first change.
        let users = read_users(&*self.store, self.place)?;
        self.remove(name, self.place.role(name))?;
        for (user_name, mut user) in users {
            if user.has(name) {
                user.roles.retain(|role| role != name);
                self.put_user(&user_name, &user)?;
            }
        }
        let left = self.record.auth.roles.checked_sub(1);
        self.record.auth.roles = left.ok_or_else(too_few)?;
        self.changed();
        Ok(())
    }

    fn grant_permission(
        &mut self,
        name: &str,
        permission: Option<&Permission>,
    ) -> Result<(), Failure> {
        let permission = permission.ok_or(Refusal::PermissionNotGiven)?;
        if !is_valid(permission) {
            return Err(Refusal::InvalidAuthMgmt.into());
        }
        let mut role = self.role(name)?;
        let mut permissions = role.permissions.iter_mut();
        // As in etcd, only the first permission from the key on is looked at. Another one on the same range stays.
        match permissions.find(|old| old.key >= permission.key) {
            Some(old) if old.key == permission.key && old.range_end == permission.range_end => {
                old.right = permission.right;
            }
            _ => {
                role.permissions.push(permission.clone());
                role.permissions
                    .sort_by(|one, other| one.key.cmp(&other.key));
            }
        }
        self.put_role(name, &role)?;
        self.changed();
        Ok(())
    }

    fn revoke_permission(
        &mut self,
        name: &str,
        key: &Bytes,
        range_end: &Bytes,
    ) -> Result<(), Failure> {
        let mut role = self.role(name)?;
        let before = role.permissions.len();
        role.permissions
            .retain(|old| old.key != key || old.range_end != range_end);
        if role.permissions.len() == before {
            return Err(Refusal::PermissionNotGranted.into());
        }
        self.put_role(name, &role)?;
        self.changed();
        Ok(())
    }

    fn put_user(&mut self, name: &str, user: &User) -> Result<(), Failure> {
        self.put(name, self.place.user(name), user.encode())
    }

    fn put_role(&mut self, name: &str, role: &Role) -> Result<(), Failure> {
        let row = role.encode();
        if row.len() > MAX_ROLE_BYTES {
            return Err(Refusal::AuthTooLarge.into());
        }
        self.put(name, self.place.role(name), row)
    }

    /// Sets a row, or refuses it for its size. A row that shrinks is never refused.
    fn put(&mut self, name: &str, stored: Bytes, row: Bytes) -> Result<(), Failure> {
        let before = get(self.store, &stored)?;
        let removed = before.map_or(0, |before| sizes::auth(name, &before));
        let added = sizes::auth(name, &row);
        self.resize(added, removed)?;
        self.store.put(stored, row);
        Ok(())
    }

    fn remove(&mut self, name: &str, stored: Bytes) -> Result<(), Failure> {
        let row = get(self.store, &stored)?;
        let removed = row.map_or(0, |row| sizes::auth(name, &row));
        self.resize(0, removed)?;
        self.store.remove(stored);
        Ok(())
    }

    fn resize(&mut self, added: u64, removed: u64) -> Result<(), Failure> {
        let sum = (self.record.auth.bytes + added).checked_sub(removed);
        let sum = sum.ok_or_else(too_few)?;
        if sum > MAX_AUTH_BYTES && added > removed {
            return Err(Refusal::AuthTooLarge.into());
        }
        self.record.grow(Growth {
            added,
            removed,
            puts: true,
        })?;
        self.record.auth.bytes = sum;
        Ok(())
    }
}

fn too_few() -> raft::StoreError {
    damaged("a keyspace", &"it counts fewer users or roles than it has")
}

/// As etcd checks: a key, or a range that isn't empty.
fn is_valid(permission: &Permission) -> bool {
    let Permission { key, range_end, .. } = permission;
    let has_range = range_end.is_empty() || key < range_end || range_end.as_ref() == [0];
    !key.is_empty() && has_range
}
