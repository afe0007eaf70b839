//! Rate limits per client: a token bucket for each address, in a table of fixed size.
//!
//! A bucket is one point in time: when it will be full again if nothing more is taken (the generic
//! cell rate algorithm). That needs no timer, and an unused bucket costs nothing.
//!
//! One table serves all limits of the process; the name of the limit is part of a bucket's key. A
//! key belongs to a set of `BUCKETS_PER_SET` buckets. In a full set a new client evicts the bucket
//! that is full first: a full bucket has nothing to remember. A flood of new addresses cannot evict
//! the bucket of a client that is over its limit, because buckets used once are nearly full and go
//! first. If more than `BUCKETS_PER_SET` clients of a set are short of tokens at the same time, the
//! one that is short of the fewest is evicted. No client is ever refused for the requests of
//! others.
//!
//! Pure: time is an argument.

use std::{
    hash::{DefaultHasher, Hasher},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{rng::Random, units::Rate};

/// Buckets in a set: 128 bytes, two cache lines.
const BUCKETS_PER_SET: usize = 8;
/// Sets in the table: 131,072 buckets in about 2.2 MiB.
const SET_COUNT: usize = 1 << 14;

/// The limit of one client: `burst` at once, and the rate in the long run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientRateLimit {
    /// Nanoseconds per token.
    interval_nanos: u64,
    /// Nanoseconds until an empty bucket is full.
    depth_nanos: u64,
    /// Hash that distinguishes the buckets of this limit from those of others.
    name: u64,
}

impl ClientRateLimit {
    /// Makes the limit `name`. Limits of another name, rate or burst have their own buckets, so
    /// that a reload with another rate starts with full ones.
    pub fn new(name: &str, rate: Rate, burst: u32) -> Self {
        // Rounded up: a nanosecond too late is better than one request too many.
        let interval = (rate.per.as_nanos() as u64).div_ceil(u64::from(rate.count.max(1)));
        let depth = interval.saturating_mul(u64::from(burst.max(1)));
        let mut hasher = DefaultHasher::new();
        hasher.write(name.as_bytes());
        hasher.write_u64(interval);
        hasher.write_u64(depth);
        Self {
            interval_nanos: interval,
            depth_nanos: depth,
            name: hasher.finish(),
        }
    }
}

/// One client's bucket at one limit.
#[derive(Debug, Clone, Copy, Default)]
struct RateBucket {
    key: u64,
    /// Time when it is full again, in nanoseconds since the table was made.
    full_at: u64,
}

/// The buckets of all clients. One lock per set, so that threads meet only at clients of one set.
#[derive(Debug)]
pub struct RateBuckets {
    sets: Box<[Mutex<[RateBucket; BUCKETS_PER_SET]>]>,
    began: Instant,
    /// Keyed hashing: a peer cannot choose addresses that share a set.
    secret: [u64; 2],
}

impl RateBuckets {
    /// Makes an empty table. Later calls must not give a time before `now`.
    pub fn new(now: Instant, random: &mut Random) -> Self {
        Self {
            sets: (0..SET_COUNT).map(|_| Mutex::default()).collect(),
            began: now,
            secret: [random.bits(), random.bits()],
        }
    }

    /// Takes a token of `client`: an IPv4 address, or the /64 of an IPv6 address.
    ///
    /// # Errors
    /// The bucket is empty; the duration until there is a token again.
    pub fn take(
        &self,
        limit: &ClientRateLimit,
        client: IpAddr,
        now: Instant,
    ) -> Result<(), Duration> {
        let key = self.key(limit, client);
        let now = now.saturating_duration_since(self.began).as_nanos() as u64;
        let set = self.sets.get(key as usize % SET_COUNT);
        debug_assert!(set.is_some(), "a table of {SET_COUNT} sets");
        let Some(set) = set else {
            return Ok(());
        };
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        let known = set.iter().position(|bucket| bucket.key == key);
        let place = known.unwrap_or_else(|| fullest(&set));
        debug_assert!(place < BUCKETS_PER_SET, "{place}");
        let Some(bucket) = set.get_mut(place) else {
            return Ok(());
        };
        // A token costs `interval_nanos`; an unknown client starts with a full bucket.
        let from = known.map_or(now, |_| bucket.full_at.max(now));
        let full_at = from.saturating_add(limit.interval_nanos);
        let wait = full_at.saturating_sub(now.saturating_add(limit.depth_nanos));
        if wait > 0 {
            return Err(Duration::from_nanos(wait));
        }
        *bucket = RateBucket { key, full_at };
        Ok(())
    }

    /// Hashes limit and client.
    fn key(&self, limit: &ClientRateLimit, client: IpAddr) -> u64 {
        let mut hasher = DefaultHasher::new();
        for part in self.secret {
            hasher.write_u64(part);
        }
        hasher.write_u64(limit.name);
        match client.to_canonical() {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits()),
            // A host usually gets a whole /64 and could use another address for every request.
            IpAddr::V6(address) => hasher.write_u64((address.to_bits() >> 64) as u64),
        }
        hasher.finish()
    }
}

/// Position of the bucket that is full first.
fn fullest(set: &[RateBucket; BUCKETS_PER_SET]) -> usize {
    let places = set.iter().enumerate();
    places
        .min_by_key(|(_, bucket)| bucket.full_at)
        .map_or(0, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv6Addr, sync::atomic::AtomicU32};

    use super::*;

    const ONE_SECOND: Duration = Duration::from_secs(1);

    fn limit(count: u32, burst: u32) -> ClientRateLimit {
        ClientRateLimit::new(
            "web",
            Rate {
                count,
                per: ONE_SECOND,
            },
            burst,
        )
    }

    fn table(seed: u64) -> (RateBuckets, Instant) {
        let now = crate::base::clock::now();
        (RateBuckets::new(now, &mut Random::seeded(seed)), now)
    }

    fn ip(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn a_burst_passes_then_the_rate_and_the_wait_is_exact() {
        let (table, start) = table(1);
        let limit = limit(10, 3);
        let at = |millis| start + Duration::from_millis(millis);
        let take = |now| table.take(&limit, ip(1), now);
        assert_eq!([take(at(0)), take(at(0)), take(at(0))], [Ok(()); 3]);
        assert_eq!(take(at(0)), Err(Duration::from_millis(100)));
        assert_eq!(take(at(60)), Err(Duration::from_millis(40)));
        assert!(take(at(99) + Duration::from_nanos(999_999)).is_err());
        assert_eq!(take(at(100)), Ok(()), "one more after 100 ms");
        assert_eq!(take(at(100)), Err(Duration::from_millis(100)));
        assert_eq!([take(at(900)), take(at(900)), take(at(900))], [Ok(()); 3]);
        assert!(take(at(900)).is_err(), "no more than the burst is saved");
    }

    #[test]
    fn clients_are_ipv4_addresses_and_ipv6_networks_and_limits_are_apart() {
        let (table, now) = table(2);
        let one = limit(1, 1);
        let v6 = |text: &str| IpAddr::V6(text.parse::<Ipv6Addr>().unwrap());
        let take = |client, limit: &ClientRateLimit| table.take(limit, client, now).is_ok();
        assert!(take(ip(1), &one) && !take(ip(1), &one) && take(ip(2), &one));
        assert!(
            !take(v6("::ffff:0.0.0.1"), &one),
            "the same address, mapped"
        );
        assert!(take(v6("2001:db8::1"), &one) && !take(v6("2001:db8::2"), &one));
        assert!(take(v6("2001:db8:0:1::1"), &one));
        let other = ClientRateLimit::new(
            "api",
            Rate {
                count: 1,
                per: ONE_SECOND,
            },
            1,
        );
        assert!(take(ip(1), &other), "another limit");
        assert!(take(ip(1), &limit(2, 1)), "another rate has its own bucket");
    }

    #[test]
    fn extreme_limits_do_not_overflow() {
        let (table, start) = table(3);
        let hourly = Rate {
            count: 1,
            per: Duration::from_hours(1),
        };
        let slow = ClientRateLimit::new("slow", hourly, u32::MAX);
        let years = start + Duration::from_hours(24 * 366 * 10);
        for now in [start, years] {
            assert!((0..1_000).all(|_| table.take(&slow, ip(1), now).is_ok()));
        }
        let fast = limit(u32::MAX, 1);
        assert_eq!(table.take(&fast, ip(1), years), Ok(()));
    }

    #[test]
    fn no_client_gets_more_than_burst_and_rate_and_an_idle_one_is_never_refused() {
        for seed in 0..10 {
            let mut random = Random::seeded(seed);
            let (table, start) = table(seed);
            let count = 1 + random.below(50) as u32;
            let burst = 1 + random.below(30) as u32;
            let limit = limit(count, burst);
            let (mut now, mut admitted) = (start, HashMap::<u32, Vec<Instant>>::new());
            let mut last_asked = HashMap::<u32, Instant>::new();
            for _ in 0..4_000 {
                now += Duration::from_micros(random.below(4_000) as u64);
                // Some clients come often, some hardly ever.
                let among = 1 << random.below(11);
                let client = random.below(among) as u32;
                let taken = table.take(&limit, ip(client), now).is_ok();
                let before = last_asked.insert(client, now);
                let full = Duration::from_nanos(limit.depth_nanos);
                if before.is_none_or(|before| now - before >= full) {
                    assert!(taken, "seed {seed}: idle client {client}");
                }
                if taken {
                    admitted.entry(client).or_default().push(now);
                }
            }
            for times in admitted.values() {
                for (index, first) in times.iter().enumerate() {
                    for (more, last) in times[index..].iter().enumerate() {
                        let time = (*last - *first).as_nanos() as u64;
                        let most = u64::from(burst) + time / limit.interval_nanos;
                        assert!((more as u64) < most, "seed {seed}: {more} in {time} ns");
                    }
                }
            }
        }
    }

    #[test]
    fn a_flood_of_addresses_resets_no_client_that_is_short_of_tokens() {
        let (table, now) = table(5);
        let limit = limit(1, 20);
        let greedy = ip(u32::MAX);
        while table.take(&limit, greedy, now).is_ok() {}
        // About 75 for each set.
        for address in 0..10 * (SET_COUNT * BUCKETS_PER_SET) as u32 {
            assert_eq!(table.take(&limit, ip(address), now), Ok(()), "a new client");
        }
        assert!(table.take(&limit, greedy, now).is_err());
    }

    #[test]
    fn threads_share_one_bucket() {
        let (table, now) = table(6);
        let (limit, taken) = (limit(1, 500), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let all = (0..1_000).filter(|_| table.take(&limit, ip(1), now).is_ok());
                    taken.fetch_add(all.count() as u32, std::sync::atomic::Ordering::Relaxed);
                });
            }
        });
        assert_eq!(taken.into_inner(), 500);
    }

    #[test]
    fn the_table_is_small() {
        let bytes = SET_COUNT * size_of::<Mutex<[RateBucket; BUCKETS_PER_SET]>>();
        assert!(bytes <= 2_300_000, "{bytes}");
    }
}
