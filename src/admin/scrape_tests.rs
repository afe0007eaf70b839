//! Tests of the scrape.
