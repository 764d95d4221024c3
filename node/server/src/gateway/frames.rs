//! The frames of a gRPC body: a byte that is 0, the length of a message (u32, big-endian), and the message.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};
use tonic::{Code, Status};

const HEAD_BYTES: usize = 5;

/// Puts a message into a frame.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// The messages of a response, and its status.
pub(super) struct Frames {
    body: Body,
    read: BytesMut,
    status: Option<Status>,
}

impl Frames {
    pub(super) fn new(response: Response<Body>) -> Self {
        // A refusal without messages has its status among the headers.
        let (head, body) = response.into_parts();
        Self {
            body,
            read: BytesMut::new(),
            status: Status::from_header_map(&head.headers),
        }
    }

    /// Returns true if the call was refused before its first message.
    pub(super) fn is_refused(&self) -> bool {
        self.status.as_ref().is_some_and(|it| it.code() != Code::Ok)
    }

    /// Returns the next message; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.take() {
                return Some(message);
            }
            if self.status.is_some() {
                return None;
            }
            self.read_on().await;
        }
    }

    /// Returns the status once all messages were taken.
    pub(super) fn status(self) -> Status {
        self.status
            .unwrap_or_else(|| Status::new(Code::Unknown, "the call ended without a status"))
    }

    fn take(&mut self) -> Option<Bytes> {
        let length: [u8; 4] = self.read.get(1..HEAD_BYTES)?.try_into().ok()?;
        let length = u32::from_be_bytes(length) as usize;
        if self.read.len() < HEAD_BYTES + length {
            return None;
        }
        self.read.advance(HEAD_BYTES);
        Some(self.read.split_to(length).freeze())
    }

    async fn read_on(&mut self) {
        let ended = |trailers: Option<&HeaderMap>| {
            let status = trailers.and_then(Status::from_header_map);
            Some(status.unwrap_or_else(|| Status::new(Code::Unknown, "no status came")))
        };
        match self.body.frame().await {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => self.read.extend_from_slice(data),
                None => self.status = ended(frame.trailers_ref()),
            },
            Some(Err(status)) => self.status = Some(status),
            None => self.status = ended(None),
        }
    }
}
