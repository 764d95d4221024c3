//! The policy in force, compiled for look-ups.

use std::collections::BTreeMap;

use crate::intervals::Intervals;
use crate::{
    Access, Account, Caller, Certificate, Grant, Grants, Need, Policy, PolicyNum, Rights, Space,
    Subject, Verb, Verbs,
};

/// The grants of a [`Policy`], by subject and keyspace. A node makes one for each policy, and asks it at each call.
#[derive(Debug, Default)]
pub struct Authorizer {
    num: PolicyNum,
    certificates: Names,
    accounts: BTreeMap<String, Namespace>,
    all_accounts: Permitted,
    anybody: Permitted,
}

/// The grants of the names in certificates.
#[derive(Debug, Default)]
struct Names {
    common: BTreeMap<String, Permitted>,
    dns: BTreeMap<String, Permitted>,
    uris: BTreeMap<String, Permitted>,
}

/// The grants of the service accounts of a namespace.
#[derive(Debug, Default)]
struct Namespace {
    all: Permitted,
    /// By name and UID; an empty UID is any.
    accounts: BTreeMap<String, BTreeMap<String, Permitted>>,
}

/// The union of all grants of one subject.
#[derive(Debug, Default)]
pub(crate) struct Permitted {
    /// The verbs of all grants, wherever they are for.
    verbs: Verbs,
    flat: Keys,
    keyspaces: BTreeMap<String, Keys>,
    /// By the beginnings of the names.
    patterns: BTreeMap<String, Keys>,
}

/// The keys that may be read, and those that may be written.
#[derive(Debug, Default)]
struct Keys {
    read: Intervals,
    write: Intervals,
}

impl Authorizer {
    /// Compiles a policy.
    pub fn new(policy: &Policy) -> Self {
        let mut authorizer = Self {
            num: policy.num(),
            ..Self::default()
        };
        for grant in policy.grants() {
            authorizer.permitted(&grant.subject).add(grant);
        }
        authorizer.for_each(Permitted::merge);
        authorizer
    }

    /// Returns the number of the policy.
    pub fn num(&self) -> PolicyNum {
        self.num
    }

    /// Returns the rights of a caller, by its certificate and by its token if it sent a valid one.
    pub fn rights<'a>(&'a self, caller: &'a Caller, account: Option<&'a Account>) -> Rights<'a> {
        let certificate = match caller {
            Caller::Client(certificate) => Some(certificate.as_ref()),
            Caller::Plain | Caller::Anonymous | Caller::Member(_) | Caller::Operator => None,
        };
        Rights::of(self, certificate, account)
    }

    fn is_granted(&self, client: &Certificate, permits: impl Fn(&Permitted) -> bool) -> bool {
        self.subjects(Some(client), None).any(permits)
    }

    fn permitted(&mut self, subject: &Subject) -> &mut Permitted {
        match subject {
            Subject::ServiceAccount {
                namespace,
                name,
                uid,
            } => {
                let namespace = self.accounts.entry(namespace.clone()).or_default();
                let account = namespace.accounts.entry(name.clone()).or_default();
                account.entry(uid.clone().unwrap_or_default()).or_default()
            }
            Subject::CommonName(name) => self.certificates.common.entry(name.clone()).or_default(),
            Subject::DnsName(name) => self.certificates.dns.entry(name.clone()).or_default(),
            Subject::Uri(name) => self.certificates.uris.entry(name.clone()).or_default(),
            Subject::Accounts { namespace: None } => &mut self.all_accounts,
            Subject::Accounts {
                namespace: Some(namespace),
            } => &mut self.accounts.entry(namespace.clone()).or_default().all,
            Subject::AnyAuthenticated => &mut self.anybody,
        }
    }

    fn for_each(&mut self, mut change: impl FnMut(&mut Permitted)) {
        let Names { common, dns, uris } = &mut self.certificates;
        let names = common
            .values_mut()
            .chain(dns.values_mut())
            .chain(uris.values_mut());
        names.for_each(&mut change);
        for namespace in self.accounts.values_mut() {
            change(&mut namespace.all);
            namespace
                .accounts
                .values_mut()
                .flat_map(BTreeMap::values_mut)
                .for_each(&mut change);
        }
        change(&mut self.all_accounts);
        change(&mut self.anybody);
    }

    /// Returns what is granted to the subjects that a caller is, each as a union of grants.
    pub(crate) fn subjects<'a>(
        &'a self,
        certificate: Option<&'a Certificate>,
        account: Option<&'a Account>,
    ) -> impl Iterator<Item = &'a Permitted> {
        let names = &self.certificates;
        let anybody = (certificate.is_some() || account.is_some()).then_some(&self.anybody);
        let by_certificate = certificate.into_iter().flat_map(|certificate| {
            let common = certificate
                .common_name
                .iter()
                .filter_map(|name| names.common.get(name));
            let dns = certificate
                .dns_names
                .iter()
                .filter_map(|name| names.dns.get(name));
            let uris = certificate
                .uris
                .iter()
                .filter_map(|name| names.uris.get(name));
            common.chain(dns).chain(uris)
        });
        let by_account = account.into_iter().flat_map(|account| {
            let namespace = self.accounts.get(&account.namespace);
            let incarnations =
                namespace.and_then(|namespace| namespace.accounts.get(&account.name));
            let any = incarnations.and_then(|all| all.get(""));
            // No verified token is without a UID; an empty one must not match twice.
            let this = incarnations
                .filter(|_| !account.uid.is_empty())
                .and_then(|all| all.get(&account.uid));
            let all = namespace.map(|namespace| &namespace.all);
            [Some(&self.all_accounts), all, any, this]
                .into_iter()
                .flatten()
        });
        anybody.into_iter().chain(by_certificate).chain(by_account)
    }
}

impl Grants for Authorizer {
    fn allows(&self, client: &Certificate, need: Need) -> bool {
        let read = |permitted: &Permitted| permitted.verbs.read;
        let write = |permitted: &Permitted| permitted.verbs.write;
        let admin = |permitted: &Permitted| permitted.verbs.admin;
        let any = |permitted: &Permitted| permitted.verbs != Verbs::default();
        match need {
            Need::Public => true,
            Need::Route => self.is_granted(client, any),
            Need::Data(Access::Read) => self.is_granted(client, read),
            Need::Data(Access::Write) => self.is_granted(client, write),
            Need::Data(Access::ReadWrite) => {
                self.is_granted(client, read) && self.is_granted(client, write)
            }
            Need::Data(Access::Parts) => {
                self.is_granted(client, read) || self.is_granted(client, write)
            }
            Need::Admin | Need::NodeAdmin => self.is_granted(client, admin),
            Need::Member => false,
        }
    }
}

impl Permitted {
    fn add(&mut self, grant: &Grant) {
        self.verbs.read |= grant.verbs.read;
        self.verbs.write |= grant.verbs.write;
        self.verbs.admin |= grant.verbs.admin;
        if grant.keyspaces.is_empty() {
            self.flat.add(grant);
        }
        for name in &grant.keyspaces {
            let keys = match name.strip_suffix('*') {
                Some(beginning) => self.patterns.entry(beginning.to_owned()),
                None => self.keyspaces.entry(name.clone()),
            };
            keys.or_default().add(grant);
        }
    }

    fn merge(&mut self) {
        let named = self
            .keyspaces
            .values_mut()
            .chain(self.patterns.values_mut());
        for keys in named.chain([&mut self.flat]) {
            keys.read.merge();
            keys.write.merge();
        }
    }

    pub(crate) fn admin(&self) -> bool {
        self.verbs.admin
    }

    /// Returns the permitted keys of a keyspace, in one or more sets.
    pub(crate) fn keys<'a>(
        &'a self,
        space: Space<'_>,
        verb: Verb,
    ) -> impl Iterator<Item = &'a Intervals> {
        let (flat, name) = match space {
            Space::Flat => (Some(&self.flat), None),
            Space::Keyspace(name) => (None, Some(name)),
        };
        let exact = name.and_then(|name| self.keyspaces.get(name));
        // A name has at most 128 bytes.
        let name = name.filter(|_| !self.patterns.is_empty());
        let beginnings = name
            .into_iter()
            .flat_map(|name| (0..=name.len()).filter_map(|end| name.get(..end)));
        let patterns = beginnings.filter_map(|beginning| self.patterns.get(beginning));
        flat.into_iter()
            .chain(exact)
            .chain(patterns)
            .map(move |keys| match verb {
                Verb::Read => &keys.read,
                Verb::Write => &keys.write,
            })
    }
}

impl Keys {
    fn add(&mut self, grant: &Grant) {
        let verbs = [
            (grant.verbs.read, &mut self.read),
            (grant.verbs.write, &mut self.write),
        ];
        for (_, keys) in verbs.into_iter().filter(|(granted, _)| *granted) {
            if grant.prefixes.is_empty() {
                keys.add_all();
            }
            for prefix in &grant.prefixes {
                keys.add_prefix(prefix.as_bytes());
            }
        }
    }
}
