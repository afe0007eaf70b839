//! The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel binding.

use std::num::NonZeroU32;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    digest, hmac, pbkdf2,
    rand::{SecureRandom as _, SystemRandom},
};

/// Most iterations that a server may ask for: a bound on the work of a check. PostgreSQL asks for
/// 4096 unless it is told otherwise.
const MAX_ITERATIONS: u32 = 100_000;

/// Bytes of our part of the nonce.
const NONCE_BYTES: usize = 18;

/// Header that says that we have no channel binding.
const GS2_HEADER: &str = "n,,";

/// Violation of the protocol by a server; `Display` is the cause for people.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScramError {
    /// A message is not what the RFC says.
    #[error("its SCRAM message is malformed")]
    Malformed,
    /// It asks for too much work.
    #[error("it asks for more than 100,000 iterations of SCRAM")]
    TooManyIterations,
    /// It does not know the password, so it is another server.
    #[error("it does not know the password itself (SCRAM)")]
    WrongServer,
    /// The system has no random numbers.
    #[error("no random numbers")]
    NoRandomness,
}

/// The first message of an exchange.
pub(super) struct ScramStart {
    nonce: String,
}

/// An exchange that waits for the server's proof.
pub(super) struct ScramProof {
    server_key: hmac::Key,
    signed: String,
}

impl ScramStart {
    /// Begins an exchange.
    pub(super) fn new() -> Result<Self, ScramError> {
        let mut bytes = [0; NONCE_BYTES];
        let random = SystemRandom::new();
        random
            .fill(&mut bytes)
            .map_err(|_| ScramError::NoRandomness)?;
        Ok(Self {
            nonce: STANDARD.encode(bytes),
        })
    }

    fn bare(&self) -> String {
        // PostgreSQL takes the user of the session, and ignores this one.
        format!("n=,r={}", self.nonce)
    }

    /// The message to send.
    pub(super) fn message(&self) -> String {
        format!("{GS2_HEADER}{}", self.bare())
    }

    /// Answers the server's first message with the proof that we know `password`. Costs the
    /// iterations that the server asks for.
    pub(super) fn answer(
        &self,
        server_first: &str,
        password: &[u8],
    ) -> Result<(String, ScramProof), ScramError> {
        let challenge = ScramChallenge::parse(server_first, &self.nonce)?;
        let salted = challenge.salted(password);
        let key = |name: &[u8]| hmac::sign(&salted, name);
        let client_key = key(b"Client Key");
        let without_proof = format!("c={},r={}", STANDARD.encode(GS2_HEADER), challenge.nonce);
        let signed = format!("{},{server_first},{without_proof}", self.bare());
        let stored = digest::digest(&digest::SHA256, client_key.as_ref());
        let stored = hmac::Key::new(hmac::HMAC_SHA256, stored.as_ref());
        let signature = hmac::sign(&stored, signed.as_bytes());
        let pairs = client_key.as_ref().iter().zip(signature.as_ref());
        let proof: Vec<u8> = pairs.map(|(key, signature)| key ^ signature).collect();
        let server_key = hmac::Key::new(hmac::HMAC_SHA256, key(b"Server Key").as_ref());
        let message = format!("{without_proof},p={}", STANDARD.encode(proof));
        Ok((message, ScramProof { server_key, signed }))
    }
}

impl ScramProof {
    /// Checks the server's last message: it must know the password too.
    pub(super) fn verify(&self, server_last: &str) -> Result<(), ScramError> {
        let signature = server_last
            .split(',')
            .find_map(|part| part.strip_prefix("v="))
            .and_then(|text| STANDARD.decode(text).ok())
            .ok_or(ScramError::Malformed)?;
        hmac::verify(&self.server_key, self.signed.as_bytes(), &signature)
            .map_err(|_| ScramError::WrongServer)
    }
}

/// The server's first message.
struct ScramChallenge {
    nonce: String,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

impl ScramChallenge {
    fn parse(text: &str, own_nonce: &str) -> Result<Self, ScramError> {
        let part = |name: &str| {
            text.split(',')
                .find_map(|part| part.strip_prefix(name))
                .ok_or(ScramError::Malformed)
        };
        let nonce = part("r=")?;
        let is_longer = nonce.len() > own_nonce.len() && nonce.starts_with(own_nonce);
        let salt = STANDARD.decode(part("s=")?).ok();
        let iterations = part("i=")?.parse::<NonZeroU32>().ok();
        let (true, Some(salt), Some(iterations)) = (is_longer, salt, iterations) else {
            return Err(ScramError::Malformed);
        };
        if iterations.get() > MAX_ITERATIONS {
            return Err(ScramError::TooManyIterations);
        }
        Ok(Self {
            nonce: nonce.to_owned(),
            salt,
            iterations,
        })
    }

    fn salted(&self, password: &[u8]) -> hmac::Key {
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(
            algorithm,
            self.iterations,
            &self.salt,
            password,
            &mut salted,
        );
        hmac::Key::new(hmac::HMAC_SHA256, &salted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677 section 3, with the user that PostgreSQL wants: none. The proof is
    /// another one for that, so both sides are computed.
    #[test]
    fn both_sides_prove_that_they_know_the_password() {
        let start = ScramStart {
            nonce: "rOprNGfwEbeRWgbNEkqO".into(),
        };
        assert_eq!(start.message(), "n,,n=,r=rOprNGfwEbeRWgbNEkqO");
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (message, proof) = start.answer(first, b"pencil").unwrap();
        let without = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=";
        assert!(message.starts_with(without), "{message}");
        let signature = hmac::sign(&proof.server_key, proof.signed.as_bytes());
        let last = format!("v={}", STANDARD.encode(signature));
        assert_eq!(proof.verify(&last), Ok(()));
        let (_, other) = start.answer(first, b"pen").unwrap();
        assert_eq!(other.verify(&last), Err(ScramError::WrongServer));
        assert_eq!(proof.verify("e=no"), Err(ScramError::Malformed));
    }

    /// RFC 7677 section 3: the salted password and the server's key give its signature.
    #[test]
    fn the_server_signature_of_the_rfc_is_verified() {
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let challenge = ScramChallenge::parse(first, "rOprNGfwEbeRWgbNEkqO").unwrap();
        let salted = challenge.salted(b"pencil");
        let server_key = hmac::sign(&salted, b"Server Key");
        let proof = ScramProof {
            server_key: hmac::Key::new(hmac::HMAC_SHA256, server_key.as_ref()),
            signed: format!(
                "n=user,r=rOprNGfwEbeRWgbNEkqO,{first},c=biws,r={}",
                challenge.nonce
            ),
        };
        let last = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(proof.verify(last), Ok(()));
    }

    #[test]
    fn messages_that_are_malformed_or_ask_for_too_much_are_refused() {
        let start = ScramStart {
            nonce: "abc".into(),
        };
        let answer = |first: &str| start.answer(first, b"x").map(|_| ()).unwrap_err();
        for first in [
            "",
            "r=abc,s=QQ==,i=1",
            "r=xyz1,s=QQ==,i=1",
            "r=abc1,s=*,i=1",
            "r=abc1,s=QQ==,i=0",
            "r=abc1,s=QQ==",
            "s=QQ==,i=1",
        ] {
            assert_eq!(answer(first), ScramError::Malformed, "{first}");
        }
        let too_many = answer("r=abc1,s=QQ==,i=100001");
        assert_eq!(too_many, ScramError::TooManyIterations);
    }
}
