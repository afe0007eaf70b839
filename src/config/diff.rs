//! Difference of two configurations: one line for each listener, route, pool, backend and global
//! key that a reload changes.
//!
//! Complete: two configurations are equal exactly when there is no line.

use std::{collections::HashMap, fmt};

use super::{
    model::{
        BackendConfig, Config, HostMatch, ListenerConfig, PoolConfig, RouteAction, RouteConfig,
        SplitShare,
    },
    schema::{self, KeyComparison, KeyEffect},
};

/// One line of the log of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// True where the running process keeps the old value until it is started again.
    pub needs_restart: bool,
    text: String,
}

impl fmt::Display for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.needs_restart {
            f.write_str(": needs a restart")?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct ChangeList(Vec<ConfigChange>);

impl ChangeList {
    fn push(&mut self, text: impl Into<String>) {
        self.0.push(ConfigChange {
            needs_restart: false,
            text: text.into(),
        });
    }

    fn if_changed<T: PartialEq>(&mut self, old: &T, new: &T, what: impl fmt::Display) {
        if old != new {
            self.push(format!("{what} changed"));
        }
    }

    /// One line for each row of the table that `differs` finds changed; `owner` is what has the
    /// keys below `section`.
    fn by_table(&mut self, owner: &str, section: &str, differs: impl Fn(&KeyComparison) -> bool) {
        for row in schema::rows().filter(|row| differs(&row.differs)) {
            let key = row.path.strip_prefix(section).unwrap_or(row.path);
            self.0.push(ConfigChange {
                needs_restart: row.effect == KeyEffect::Restart,
                text: format!("{owner}{key} changed"),
            });
        }
    }
}

/// All changes from `old` to `new`: global sections, listeners, routes, pools, each in the order of
/// the new file.
pub fn diff(old: &Config, new: &Config) -> Vec<ConfigChange> {
    let mut changes = ChangeList::default();
    changes.by_table("", "", |differs| match differs {
        KeyComparison::File(differs) => differs(old, new),
        KeyComparison::Listener(_) | KeyComparison::Pool(_) | KeyComparison::WithSection => false,
    });
    listeners(&mut changes, old, new);
    routes(&mut changes, old, new);
    pools(&mut changes, old, new);
    changes.0
}

fn by_name<'a, T>(items: &'a [T], name: impl Fn(&'a T) -> &'a str) -> HashMap<&'a str, &'a T> {
    items.iter().map(|item| (name(item), item)).collect()
}

/// The name behind an index, which a reordered file may change while the meaning stays.
fn pool_name(config: &Config, index: Option<usize>) -> Option<&str> {
    config.pools.get(index?).map(|pool| &*pool.name)
}

fn listeners(changes: &mut ChangeList, old: &Config, new: &Config) {
    let before = by_name(&old.listeners, |listener| &*listener.name);
    let after = by_name(&new.listeners, |listener| &*listener.name);
    for listener in &old.listeners {
        if !after.contains_key(&*listener.name) {
            changes.push(format!("listener {} removed", listener.name));
        }
    }
    for listener in &new.listeners {
        let name = &listener.name;
        match before.get(&**name) {
            None => changes.push(format!("listener {name} added")),
            Some(was) => {
                if pool_name(old, was.pool) != pool_name(new, listener.pool) {
                    changes.push(format!("listener {name}: pool changed"));
                }
                if !names_to_pools(old, was).eq(names_to_pools(new, listener)) {
                    changes.push(format!("listener {name}: sni changed"));
                }
                let owner = format!("listener {name}: ");
                changes.by_table(&owner, "listeners.NAME.", |differs| match differs {
                    KeyComparison::Listener(differs) => differs(was, listener),
                    KeyComparison::File(_)
                    | KeyComparison::Pool(_)
                    | KeyComparison::WithSection => false,
                });
            }
        }
    }
    order(
        changes,
        &old.listeners,
        &new.listeners,
        |listener| &*listener.name,
        "listeners",
    );
}

/// Entries of `sni` by the names of the pools.
fn names_to_pools<'a>(
    config: &'a Config,
    listener: &'a ListenerConfig,
) -> impl Iterator<Item = (&'a HostMatch, Option<&'a str>)> {
    let names = listener.sni.iter();
    names.map(|(name, pool)| (name, pool_name(config, Some(*pool))))
}

/// A line when the same names stand in another order, which moves indexes but no traffic.
fn order<'a, T>(
    changes: &mut ChangeList,
    old: &'a [T],
    new: &'a [T],
    name: impl Fn(&'a T) -> &'a str + Copy,
    what: &str,
) {
    let (before, after) = (by_name(old, name), by_name(new, name));
    let kept_old = old.iter().map(name).filter(|name| after.contains_key(name));
    let kept_new = new
        .iter()
        .map(name)
        .filter(|name| before.contains_key(name));
    if !kept_old.eq(kept_new) {
        changes.push(format!("{what} in another order"));
    }
}

fn routes(changes: &mut ChangeList, old: &Config, new: &Config) {
    for (index, route) in new.routes.iter().enumerate() {
        match old.routes.get(index) {
            None => changes.push(format!("route {} added", route.name)),
            Some(was) if !same_route(old, was, new, route) => {
                changes.push(format!("route {} changed", route.name));
            }
            Some(_) => {}
        }
    }
    for route in old.routes.iter().skip(new.routes.len()) {
        changes.push(format!("route {} removed", route.name));
    }
}

/// Compares two routes by the names they refer to.
fn same_route(old: &Config, was: &RouteConfig, new: &Config, is: &RouteConfig) -> bool {
    fn names<'a>(
        config: &'a Config,
        route: &'a RouteConfig,
    ) -> impl Iterator<Item = Option<&'a str>> {
        route
            .listeners
            .iter()
            .map(|index| config.listeners.get(*index).map(|listener| &*listener.name))
    }
    let same_action = match (&was.action, &is.action) {
        (RouteAction::Pool(a), RouteAction::Pool(b)) => {
            pool_name(old, Some(*a)) == pool_name(new, Some(*b))
        }
        (RouteAction::Split(a), RouteAction::Split(b)) => {
            fn named<'a>(
                config: &'a Config,
                shares: &'a [SplitShare],
            ) -> impl Iterator<Item = (Option<&'a str>, SplitShare)> {
                shares.iter().map(|share| {
                    let name = pool_name(config, Some(share.pool));
                    (
                        name,
                        SplitShare {
                            pool: 0,
                            ..share.clone()
                        },
                    )
                })
            }
            named(old, a).eq(named(new, b))
        }
        (a, b) => a == b,
    };
    let mut like = is.clone();
    like.action.clone_from(&was.action);
    like.listeners.clone_from(&was.listeners);
    same_action && names(old, was).eq(names(new, is)) && like == *was
}

fn pools(changes: &mut ChangeList, old: &Config, new: &Config) {
    let before = by_name(&old.pools, |pool| &*pool.name);
    let after = by_name(&new.pools, |pool| &*pool.name);
    for pool in &old.pools {
        if !after.contains_key(&*pool.name) {
            changes.push(format!("pool {} removed", pool.name));
        }
    }
    for pool in &new.pools {
        match before.get(&*pool.name) {
            None => changes.push(format!("pool {} added", pool.name)),
            Some(was) => one_pool(changes, was, pool),
        }
    }
    order(changes, &old.pools, &new.pools, |pool| &*pool.name, "pools");
}

fn one_pool(changes: &mut ChangeList, old: &PoolConfig, new: &PoolConfig) {
    let name = &new.name;
    backends(changes, name, &old.backends, &new.backends);
    let owner = format!("pool {name}: ");
    changes.by_table(&owner, "pools.NAME.", |differs| match differs {
        KeyComparison::Pool(differs) => differs(old, new),
        KeyComparison::File(_) | KeyComparison::Listener(_) | KeyComparison::WithSection => false,
    });
}

fn backends(changes: &mut ChangeList, pool: &str, old: &[BackendConfig], new: &[BackendConfig]) {
    let before: HashMap<_, _> = old
        .iter()
        .map(|backend| (&backend.address, backend))
        .collect();
    let after: HashMap<_, _> = new
        .iter()
        .map(|backend| (&backend.address, backend))
        .collect();
    for backend in old {
        if !after.contains_key(&backend.address) {
            changes.push(format!("pool {pool}: backend {} removed", backend.address));
        }
    }
    for backend in new {
        let what = format!("pool {pool}: backend {}", backend.address);
        let Some(was) = before.get(&backend.address) else {
            changes.push(format!("{what} added"));
            continue;
        };
        if was.weight != backend.weight {
            changes.push(format!("{what} weight {} → {}", was.weight, backend.weight));
        }
        changes.if_changed(&was.name, &backend.name, format!("{what} name"));
        if was.backup != backend.backup {
            changes.push(format!("{what} backup {} → {}", was.backup, backend.backup));
        }
        changes.if_changed(
            &was.max_connections,
            &backend.max_connections,
            format!("{what} max_connections"),
        );
        let port = format!("{what} check_port");
        changes.if_changed(&was.check_port, &backend.check_port, port);
        changes.if_changed(&was.tls, &backend.tls, format!("{what} tls"));
        changes.if_changed(&was.resolve, &backend.resolve, format!("{what} resolve"));
    }
    let kept_old = old
        .iter()
        .filter(|backend| after.contains_key(&backend.address));
    let kept_new = new
        .iter()
        .filter(|backend| before.contains_key(&backend.address));
    if !kept_old
        .map(|b| &b.address)
        .eq(kept_new.map(|b| &b.address))
    {
        changes.push(format!("pool {pool}: backends in another order"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        base::rng::Random,
        config::{NoFiles, parse},
    };

    fn config(text: &str) -> Config {
        parse(Path::new("test.yaml"), text, &NoFiles)
            .unwrap()
            .config
    }

    fn lines(old: &str, new: &str) -> Vec<String> {
        diff(&config(old), &config(new))
            .iter()
            .map(ConfigChange::to_string)
            .collect()
    }

    #[test]
    fn every_change_is_one_line() {
        let old = "
listeners: {web: {bind: ':80', pool: app}, raw: {bind: ':81', pool: app, protocol: tcp}}
pools: {app: {backends: [10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80]}}
";
        let new = "
workers: 3
metrics: {bind: none}
listeners: {web: {bind: ':80', pool: app}, new: {bind: ':82', pool: other}}
routes: [{path: /a, pool: other}]
pools:
  app: {policy: random_two, backends: [{address: 10.0.0.1:80, weight: 2}, 10.0.0.3:80, 10.0.0.4:80]}
  other: {backends: [10.0.0.1:80]}
";
        assert_eq!(
            lines(old, new),
            [
                "workers changed: needs a restart",
                "metrics.bind changed: needs a restart",
                "listener raw removed",
                "listener new added",
                "route routes[0] added",
                "pool app: backend 10.0.0.2:80 removed",
                "pool app: backend 10.0.0.1:80 weight 1 → 2",
                "pool app: backend 10.0.0.4:80 added",
                "pool app: policy changed",
                "pool other added",
            ]
        );
        assert_eq!(lines(new, new), Vec::<String>::new());
    }

    #[test]
    fn every_key_of_a_section_is_compared() {
        // Compared in this file: by the names of pools, by address, one by one.
        let here = ["listeners", "routes", "pools", "pool", "sni", "backends"];
        for section in ["", "listeners.NAME", "pools.NAME"] {
            for row in schema::section(section) {
                let within = format!("{}.", row.path);
                let is_compared = schema::rows()
                    .filter(|other| other.path == row.path || other.path.starts_with(&within))
                    .any(|other| !matches!(other.differs, KeyComparison::WithSection));
                let has_no_effect = row.path == "version";
                assert!(
                    is_compared || has_no_effect || here.contains(&row.name()),
                    "a reload would not tell that `{}` has changed",
                    row.path
                );
            }
        }
    }

    #[test]
    fn moved_pools_change_no_listener() {
        let old = "
listeners: {web: {bind: ':80', pool: b}, raw: {bind: ':81', pool: a}}
pools: {a: {backends: [10.0.0.1:80]}, b: {backends: [10.0.0.1:80]}}
";
        let new = "
listeners: {web: {bind: ':80', pool: b}, raw: {bind: ':81', pool: a}}
pools: {b: {backends: [10.0.0.1:80]}, a: {backends: [10.0.0.1:80]}}
";
        assert_eq!(lines(old, new), ["pools in another order"]);
    }

    #[test]
    fn server_names_are_compared_by_the_names_of_their_pools() {
        let file = |sni: &str, pools: [&str; 2]| {
            let pools = pools.map(|pool| format!("{pool}: {{backends: [10.0.0.1:80]}}"));
            format!(
                "listeners: {{raw: {{bind: ':443', protocol: tcp, sni: {sni}}}}}\npools: {{{}}}\n",
                pools.join(", ")
            )
        };
        let old = file("{a.test: a, '*.test': b}", ["a", "b"]);
        let moved = file("{'*.TEST.': b, a.test: a}", ["b", "a"]);
        assert_eq!(lines(&old, &moved), ["pools in another order"]);
        for other in [
            "{a.test: b, '*.test': b}",
            "{a.test: a}",
            "{a.test: a, test: b}",
        ] {
            let new = file(other, ["a", "b"]);
            let changed = lines(&old, &new);
            assert_eq!(
                changed.first().unwrap(),
                "listener raw: sni changed",
                "{other}"
            );
        }
    }

    #[test]
    fn a_split_is_compared_by_the_names_of_its_pools() {
        let file = |split: &str, pools: [&str; 2]| {
            let pools = pools.map(|pool| format!("{pool}: {{backends: [10.0.0.1:80]}}"));
            format!(
                "listeners: {{web: {{bind: ':80', pool: a}}}}\nroutes: [{{split: {split}}}]\npools: {{{}}}\n",
                pools.join(", ")
            )
        };
        let old = file("{a: 1, b: 2}", ["a", "b"]);
        let moved = file("{a: 1, b: 2}", ["b", "a"]);
        assert_eq!(lines(&old, &moved), ["pools in another order"]);
        let weight = file("{a: 2, b: 2}", ["a", "b"]);
        assert_eq!(lines(&old, &weight), ["route routes[0] changed"]);
        let swapped = file("{a: 2, b: 1}", ["b", "a"]);
        assert_eq!(
            lines(&old, &swapped),
            ["route routes[0] changed", "pools in another order"]
        );
    }

    /// A random configuration out of few choices, so that equal ones are not rare.
    fn random_text(random: &mut Random) -> String {
        let mut pick = |choices: &[&'static str]| choices[random.below(choices.len())];
        let global = pick(&[
            "",
            "workers: 2\n",
            "drain: {delay: 1s}\n",
            "log: {level: warn}\n",
        ]);
        let bind = pick(&["\":80\"", "\":81\""]);
        let pool = pick(&["a", "b"]);
        let deny = pick(&[
            "",
            ", deny: [10.0.0.1]",
            ", rate_limit: {per_client: 9/s}",
            ", rate_limit: {per_client: 9/s, burst: 8}",
            ", accept_proxy: {from: 10.0.0.1}",
            ", accept_proxy: {from: 10.0.0.1, version: v2}",
        ]);
        let policy = pick(&[
            "",
            "policy: random_two, ",
            "send_proxy: v1, ",
            "protocol: h2c, ",
        ]);
        let backends = pick(&[
            "h:1, h:2",
            "h:2, h:1",
            "h:1",
            "{address: h:1, weight: 3}, h:2",
            "{address: h:1, backup: true}, h:2",
            "{address: h:1, backup: 2}, h:2",
            "{address: h:1, name: x}",
            "{address: h:1, max_connections: 9}",
        ]);
        let pools = [
            format!("a: {{{policy}backends: [{backends}]}}"),
            "b: {backends: [h:1]}".to_owned(),
        ];
        let pools = if pick(&["", "x"]).is_empty() {
            pools.join(", ")
        } else {
            format!("{}, {}", pools[1], pools[0])
        };
        let route = pick(&[
            "",
            "routes: [{path: /x, pool: a}]\n",
            "routes: [{path: /x, pool: b}]\n",
            "routes: [{path: /x, pool: b, rewrite: {path: /y}}]\n",
            "routes: [{path: /x, split: {a: 1}}]\n",
            "routes: [{path: /x, split: {a: 1, b: 2}}]\n",
            "routes: [{path: /x, split: {a: 1, b: 2}, retries: {attempts: 1}}]\n",
        ]);
        format!(
            "{global}listeners: {{web: {{bind: {bind}, pool: {pool}{deny}}}}}\n{route}pools: {{{pools}}}\n"
        )
    }

    #[test]
    fn the_diff_is_empty_exactly_when_the_configurations_are_equal() {
        let mut random = Random::seeded(20);
        let mut equal = 0;
        for round in 0..2_000 {
            let old = config(&random_text(&mut random));
            // Every third pair is read twice from one text.
            let new = if round % 3 == 0 {
                old.clone()
            } else {
                config(&random_text(&mut random))
            };
            equal += usize::from(old == new);
            let changes = diff(&old, &new);
            assert_eq!(
                changes.is_empty(),
                old == new,
                "round {round}: {changes:?}\n{old:?}\n{new:?}"
            );
        }
        assert!((600..1_900).contains(&equal), "{equal}");
    }
}
