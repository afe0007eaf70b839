//! The limit of interim responses (1xx) per attempt, and per exchange towards the client.

use std::time::Instant;

use crate::base::clock;

/// Interim responses allowed at once. Beyond them one more is allowed for each second: servers
/// that send 102 every few seconds during long work are honest.
const MAX_INTERIM: u32 = 16;

/// True if `count` interim responses since `began` are a flood, which is neither passed on nor
/// waited for.
pub(super) fn is_flood(count: u32, began: Instant) -> bool {
    let more = u64::from(count.saturating_sub(MAX_INTERIM));
    more > 0 && more > clock::now().saturating_duration_since(began).as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn interim_responses_that_take_their_time_are_no_flood() {
        let began = clock::now();
        assert!(!is_flood(16, began));
        assert!(is_flood(17, began));
        for count in 1..=1_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!is_flood(count, began), "one a second: {count}");
        }
        assert!(!is_flood(1_016, began));
        assert!(is_flood(1_017, began));
    }
}
