//! Typed details for errors that the gRPC library makes by itself: messages that are too large or can't be decoded never
//! reach a handler.

use api::v1::ErrorDetail;
use api::{ERROR_METADATA_KEY, error_status, errors};
use tonic::{Code, Status};

/// Adds a typed detail to a response of the library, where one fits.
pub(crate) fn response<B: Default>(
    response: tonic::codegen::http::Response<B>,
) -> tonic::codegen::http::Response<B> {
    // The library keeps the status of a response that carries nothing else.
    let Some(status) = response.extensions().get::<Status>() else {
        return response;
    };
    match detail(status) {
        Some(detail) => error_status(&detail).into_http(),
        None => response,
    }
}

/// Adds a typed detail to a status of the library, where one fits.
pub(crate) fn status(status: Status) -> Status {
    match detail(&status) {
        Some(detail) => error_status(&detail),
        None => status,
    }
}

fn detail(status: &Status) -> Option<ErrorDetail> {
    if status.metadata().contains_key(ERROR_METADATA_KEY) {
        return None;
    }
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            let (size, limit) = sizes(status.message())?;
            Some(errors::too_large("message", size, limit))
        }
        Code::Internal if status.message().contains("decode") => {
            Some(errors::bad_request("message", status.message()))
        }
        _ => None,
    }
}

/// Returns the two numbers of "decoded message length too large: found 9 bytes, the limit is: 8 bytes".
fn sizes(message: &str) -> Option<(u64, u64)> {
    if !message.contains("message length too large") {
        return None;
    }
    let mut numbers = message
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use api::error_detail;
    use api::v1::error_detail::Kind;

    use super::*;

    #[test]
    fn the_librarys_errors_get_details_and_ours_keep_theirs() {
        let large = Status::out_of_range(
            "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes",
        );
        let Some(Kind::TooLarge(kind)) = error_detail(&status(large)).unwrap().kind else {
            panic!("it is too large");
        };
        assert_eq!((kind.size, kind.limit), (9, 8));
        let broken = Status::internal("failed to decode Protobuf message: invalid wire type");
        let detail = error_detail(&status(broken)).unwrap();
        assert!(matches!(detail.kind, Some(Kind::BadRequest(_))));
        let ours = errors::overloaded("requests", 9, 10);
        assert_eq!(error_detail(&status(error_status(&ours))), Some(ours));
        assert_eq!(error_detail(&status(Status::unimplemented("x"))), None);
        assert_eq!(error_detail(&status(Status::internal("x"))), None);
    }
}
