//! The process's limit of open files: every connection is one, every proxied connection two.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard limit, and gives the limit that holds now; `u64::MAX` is unlimited.
pub fn raise_open_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current.unwrap_or(u64::MAX);
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // A refusal (a sandbox may forbid it) leaves the soft limit, with which we live.
    let now = setrlimit(Resource::Nofile, raised).map_or(limit.current, |()| limit.maximum);
    now.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_returned_is_the_one_that_holds() {
        let told = raise_open_file_limit();
        assert_eq!(
            told,
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
        );
        assert_eq!(told, raise_open_file_limit());
    }
}
