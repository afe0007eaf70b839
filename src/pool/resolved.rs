//! Addresses of a backend, with the preferred one first.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The addresses of a backend, and the one that accepted a connection last.
///
/// Preferring that one keeps a dead address of a name from costing every new connection its share
/// of the connect timeout.
#[derive(Debug, Default)]
pub struct ResolvedAddresses {
    /// In ascending order, IPv4 first.
    addresses: Vec<SocketAddr>,
    /// Position in `addresses`. Relaxed: a stale value only changes the order of attempts.
    preferred: AtomicUsize,
}

impl ResolvedAddresses {
    /// Sorts `addresses`. The preferred one is that of `previous` if it is still listed, else the
    /// first.
    pub fn new(mut addresses: Vec<SocketAddr>, previous: Option<&Self>) -> Self {
        // Sorted, because resolvers rotate their answers: the same set must compare equal.
        addresses.sort_unstable();
        addresses.dedup();
        let kept = previous.and_then(|previous| {
            let preferred = previous.in_order().next()?;
            addresses.iter().position(|address| *address == preferred)
        });
        Self {
            addresses,
            preferred: AtomicUsize::new(kept.unwrap_or(0)),
        }
    }

    /// The same addresses at another port.
    #[must_use]
    pub fn at_port(&self, port: u16) -> Self {
        let mut addresses = self.addresses.clone();
        for address in &mut addresses {
            address.set_port(port);
        }
        Self {
            addresses,
            preferred: AtomicUsize::new(self.preferred.load(Relaxed)),
        }
    }

    /// All addresses, in ascending order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// All addresses, beginning with the one that accepted last.
    pub fn in_order(&self) -> impl Iterator<Item = SocketAddr> {
        let preferred = self.preferred.load(Relaxed).min(self.addresses.len());
        let (before, from) = self.addresses.split_at(preferred);
        from.iter().chain(before).copied()
    }

    /// Records that `address` has accepted a connection.
    pub fn prefer(&self, address: SocketAddr) {
        let position = self.addresses.iter().position(|one| *one == address);
        // Stores only a change, so that workers do not fight over the cache line.
        let is_new = |position: &usize| *position != self.preferred.load(Relaxed);
        if let Some(position) = position.filter(is_new) {
            self.preferred.store(position, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_accepted_last_is_first_as_long_as_it_is_listed() {
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let order = |resolved: &ResolvedAddresses| resolved.in_order().collect::<Vec<_>>();
        let listed = vec![address(3), address(1), address(2), address(1)];
        let resolved = ResolvedAddresses::new(listed, None);
        assert_eq!(order(&resolved), [address(1), address(2), address(3)]);
        resolved.prefer(address(2));
        assert_eq!(order(&resolved), [address(2), address(3), address(1)]);
        let first = resolved.at_port(81).in_order().next().unwrap();
        assert_eq!(first.to_string(), "10.0.0.2:81");
        let listed = vec![address(9), address(2), address(0)];
        let more = ResolvedAddresses::new(listed, Some(&resolved));
        assert_eq!(order(&more), [address(2), address(9), address(0)]);
        let without = ResolvedAddresses::new(vec![address(9), address(3)], Some(&more));
        assert_eq!(order(&without), [address(3), address(9)]);
        let none = ResolvedAddresses::new(Vec::new(), Some(&without));
        assert_eq!(order(&none), []);
        let again = ResolvedAddresses::new(vec![address(1)], Some(&none));
        assert_eq!(order(&again), [address(1)]);
    }
}
