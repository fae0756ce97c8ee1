//! What a store's answer means.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::BackendError;

type Cause = Box<dyn Error + Send + Sync>;

/// A request that did not do what it asked for.
#[derive(Debug)]
pub(super) enum Answer {
    /// There is no such object.
    Absent(Cause),
    /// `If-None-Match` was honoured: the object is there.
    Exists(Cause),
    /// Try again.
    Conflict(Cause),
    /// The range begins behind the object's end.
    BehindTheEnd(Cause),
    /// The store does not know the header or the request.
    NotImplemented(Cause),
    /// The object has no lock, or the bucket none at all (which some call an invalid request).
    Unlocked(Cause),
    /// There is no such bucket.
    NoBucket(Cause),
    /// Wrong or missing credentials or rights.
    Refused(Cause),
    /// What was sent or received changed on the way.
    Garbled(Cause),
    /// Nobody answered, or not to the end.
    Unreachable(Cause),
    /// Anything else.
    Other(Cause),
}

impl Answer {
    pub(super) fn into_error(self, action: &'static str, place: String) -> BackendError {
        match self {
            Self::NoBucket(source) => BackendError::BucketMissing { place, source },
            Self::Refused(source) => BackendError::Refused {
                action,
                place,
                source,
            },
            Self::Unreachable(source) => BackendError::Unreachable {
                action,
                place,
                source,
            },
            Self::Absent(source)
            | Self::Exists(source)
            | Self::Conflict(source)
            | Self::BehindTheEnd(source)
            | Self::NotImplemented(source)
            | Self::Unlocked(source)
            | Self::Garbled(source)
            | Self::Other(source) => BackendError::Store {
                action,
                place,
                source,
            },
        }
    }

    /// Whether asking again may bring another answer.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Conflict(_) | Self::Garbled(_) | Self::Unreachable(_)
        )
    }

    /// The store's word.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Absent(cause)
            | Self::Exists(cause)
            | Self::Conflict(cause)
            | Self::BehindTheEnd(cause)
            | Self::NotImplemented(cause)
            | Self::Unlocked(cause)
            | Self::NoBucket(cause)
            | Self::Refused(cause)
            | Self::Garbled(cause)
            | Self::Unreachable(cause)
            | Self::Other(cause) => cause.to_string(),
        }
    }
}

/// The whole chain as one text: the SDK's own `Display` says only "service error".
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

pub(super) fn classify<E>(error: SdkError<E, HttpResponse>) -> Answer
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let told = told(&error);
    match &error {
        // Without credentials nothing is sent; the SDK calls that a failure to dispatch.
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_)
            if told.0.to_lowercase().contains("credential") =>
        {
            Answer::Refused(told.into())
        }
        SdkError::DispatchFailure(_) | SdkError::TimeoutError(_) => {
            Answer::Unreachable(told.into())
        }
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            by_status(status, answer.err().code().unwrap_or_default(), told.into())
        }
        // Something answered that does not speak S3, or the answer broke off.
        SdkError::ResponseError(_) => Answer::Unreachable(told.into()),
        _ => Answer::Other(told.into()),
    }
}

fn told<E>(error: &SdkError<E, HttpResponse>) -> Told
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let SdkError::ServiceError(answer) = error
        && let Some(code) = answer.err().code()
    {
        let status = answer.raw().status().as_u16();
        let message = answer.err().message().unwrap_or_default();
        return Told(format!("{status} {code} {message}").trim_end().to_owned());
    }
    Told(DisplayErrorContext(error).to_string())
}

fn by_status(status: u16, code: &str, cause: Cause) -> Answer {
    match (status, code) {
        (_, "NoSuchBucket") => Answer::NoBucket(cause),
        (_, "NoSuchKey" | "NoSuchVersion" | "NoSuchUpload" | "NotFound") => Answer::Absent(cause),
        (_, "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch")
        | (400, "IncompleteBody") => Answer::Garbled(cause),
        (408 | 429, _) | (_, "RequestTimeout" | "SlowDown" | "Throttling" | "TooManyRequests") => {
            Answer::Unreachable(cause)
        }
        (_, "NoSuchObjectLockConfiguration" | "ObjectLockConfigurationNotFoundError")
        | (400, "InvalidRequest") => Answer::Unlocked(cause),
        // In an archive class: brought back by another request first.
        (_, "InvalidObjectState") => Answer::Other(cause),
        (401 | 403, _)
        | (
            _,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "AccessDenied"
            | "RequestTimeTooSkewed",
        ) => Answer::Refused(cause),
        (412, _) => Answer::Exists(cause),
        (409, _) => Answer::Conflict(cause),
        (416, _) => Answer::BehindTheEnd(cause),
        (501, _) => Answer::NotImplemented(cause),
        // Slow down, internal error, unavailable.
        (500..=599, _) => Answer::Unreachable(cause),
        _ => Answer::Other(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_about_the_key_means_absent() {
        let answer = |status, code| by_status(status, code, "".into());
        assert!(matches!(answer(404, "NoSuchKey"), Answer::Absent(_)));
        assert!(matches!(answer(404, "NoSuchBucket"), Answer::NoBucket(_)));
        assert!(!matches!(answer(404, ""), Answer::Absent(_)));
        assert!(!matches!(answer(403, ""), Answer::Absent(_)));
        assert!(!matches!(answer(503, "SlowDown"), Answer::Absent(_)));
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let passes = |status, code| by_status(status, code, "".into()).may_pass();
        for (status, code) in [
            (503, "SlowDown"),
            (500, "InternalError"),
            (502, ""),
            (504, ""),
            (429, ""),
            (408, ""),
            (400, "RequestTimeout"),
            (400, "BadDigest"),
            (409, "ConditionalRequestConflict"),
        ] {
            assert!(passes(status, code), "{status} {code}");
        }
        for (status, code) in [
            (403, "AccessDenied"),
            (404, "NoSuchKey"),
            (404, ""),
            (412, "PreconditionFailed"),
            (501, "NotImplemented"),
            (400, "InvalidArgument"),
        ] {
            assert!(!passes(status, code), "{status} {code}");
        }
    }
}
