//! A tcp check with steps: bytes of the configuration are sent, and what comes is searched for what
//! it expects.
//!
//! A match removes all that was received up to its end. So does a send: what was received before
//! it cannot be the answer to it.

use tokio::time::timeout_at;

use super::{
    conversation::{MAX_ANSWER_BYTES, ProbeConversation, shown},
    deadline::ProbeDeadline,
    error::CheckError,
};
use crate::config::model::{CheckStep, ExpectedText, StepBytes};

/// Runs `steps` one after the other. Keeps the deadline itself, so that the cause of a step that
/// got something else, and waited for more, says what it got.
pub(super) async fn probe(
    mut conversation: ProbeConversation<'_>,
    steps: &[CheckStep],
    deadline: ProbeDeadline,
) -> Result<(), CheckError> {
    let mut has_secret = false;
    for (index, step) in steps.iter().enumerate() {
        if let Some(send) = &step.send {
            let _ = conversation.take(usize::MAX);
            let bytes = match send {
                StepBytes::Plain(bytes) => bytes,
                StepBytes::Secret(secret) => {
                    has_secret = true;
                    secret.reveal()
                }
            };
            let sending = async {
                conversation.send(bytes).await;
                Ok(())
            };
            deadline.run(sending).await?;
        }
        if let Some(expect) = &step.expect {
            let found = wait_for(&mut conversation, expect, deadline).await?;
            found.map_err(|how| {
                let wanted = wanted(expect);
                let came = what_came(conversation.unused(), has_secret);
                let number = index + 1;
                let cause = format!("step {number}: expected {wanted}, found {came}{how}");
                CheckError::unexpected(cause)
            })?;
        }
    }
    Ok(())
}

/// Reads until `expect` is there, and uses it up. The inner error says how it ended without.
async fn wait_for(
    conversation: &mut ProbeConversation<'_>,
    expect: &ExpectedText,
    deadline: ProbeDeadline,
) -> Result<Result<(), String>, CheckError> {
    loop {
        if let Some(end) = end_of_match(expect, conversation.unused()) {
            let _ = conversation.take(end);
            return Ok(Ok(()));
        }
        if conversation.unused().len() >= MAX_ANSWER_BYTES {
            return Ok(Err(" and more".to_owned()));
        }
        match timeout_at(deadline.at.into(), conversation.read_more()).await {
            Ok(Ok(())) => {}
            Ok(Err(CheckError::Closed | CheckError::Truncated)) => {
                return Ok(Err(" and the end of the connection".to_owned()));
            }
            Ok(Err(other)) => return Err(other),
            Err(_) => return Ok(Err(format!(" within {:?}", deadline.timeout))),
        }
    }
}

/// Bytes that arrived, for a cause.
fn what_came(bytes: &[u8], has_secret: bool) -> String {
    match bytes {
        [] => "nothing".to_owned(),
        // A server may repeat what it was sent.
        _ if has_secret => format!("{} bytes, not shown after a secret,", bytes.len()),
        _ => format!("`{}`", shown(bytes)),
    }
}

fn wanted(expect: &ExpectedText) -> String {
    match expect {
        ExpectedText::Bytes(bytes) => format!("`{}`", shown(bytes)),
        ExpectedText::Regex(pattern) => format!("a match of `{}`", pattern.text),
    }
}

/// The end of the first match in `bytes`.
pub(super) fn end_of_match(expect: &ExpectedText, bytes: &[u8]) -> Option<usize> {
    match expect {
        ExpectedText::Bytes(text) => {
            let start = memchr::memmem::find(bytes, text)?;
            Some(start + text.len())
        }
        ExpectedText::Regex(pattern) => pattern.regex.find(bytes).map(|found| found.end()),
    }
}
