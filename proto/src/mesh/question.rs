//! Questions and answers as frames: a length of four bytes, most significant first, and the encoded message.
//!
//! The length is checked against the cap of the message before anything is read, and memory grows only with what
//! has arrived.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, request_response};

use crate::{
    codec::{self, CodecError, Message},
    message::{Answer, Question},
};

/// Reads and writes questions and answers on one substream.
#[derive(Clone, Debug)]
pub(super) struct QuestionCodec;

impl request_response::Codec for QuestionCodec {
    type Protocol = StreamProtocol;
    type Request = Question;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Question>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, question: Question) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &question).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: Answer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &answer).await
    }
}

/// Says whether reading failed because of what the peer sent; another version of the protocol is no ill will.
pub(super) fn is_offence(error: &io::Error) -> bool {
    let rule = error.get_ref().and_then(|inner| inner.downcast_ref::<CodecError>());
    rule.is_some_and(|rule| !matches!(rule, CodecError::Version { .. }))
}

async fn read<M: Message, T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<M> {
    let mut header = [0; 4];
    io.read_exact(&mut header).await?;
    let len = u32::from_be_bytes(header);
    let declared = usize::try_from(len).unwrap_or(usize::MAX);
    if declared > M::CAP {
        return Err(invalid(CodecError::TooLarge { name: M::NAME, len: declared, cap: M::CAP }));
    }
    let mut frame = Vec::new();
    io.take(u64::from(len)).read_to_end(&mut frame).await?;
    codec::decode(&frame).map_err(invalid)
}

async fn write<M: Message, T: AsyncWrite + Unpin + Send>(io: &mut T, message: &M) -> io::Result<()> {
    let body = codec::encode(message).map_err(invalid)?;
    let len = u32::try_from(body.len()).map_err(invalid)?;
    io.write_all(&len.to_be_bytes()).await?;
    io.write_all(&body).await?;
    io.flush().await
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[tokio::test]
    async fn a_question_survives_its_frame() {
        let mut wire = Cursor::new(Vec::new());
        write(&mut wire, &Question::Describe).await.unwrap();
        wire.set_position(0);
        assert_eq!(read::<Question, _>(&mut wire).await.unwrap(), Question::Describe);
    }

    #[tokio::test]
    async fn a_frame_above_the_cap_is_refused_by_its_length_alone() {
        let mut wire = Cursor::new(5000_u32.to_be_bytes().to_vec());
        let error = read::<Question, _>(&mut wire).await.unwrap_err();
        assert!(error.to_string().contains("5000 bytes is above its cap"), "{error}");
        assert!(is_offence(&error));
    }

    #[tokio::test]
    async fn what_is_no_question_is_an_offence_and_another_version_or_an_early_end_is_none() {
        for (frame, offence) in
            [([1, 99].as_slice(), true), (&[1, 1, 0], true), (&[2, 1], false), (&[1], true)]
        {
            let len = u32::try_from(frame.len()).unwrap().to_be_bytes();
            let mut wire = Cursor::new([len.as_slice(), frame].concat());
            let error = read::<Question, _>(&mut wire).await.unwrap_err();
            assert_eq!(is_offence(&error), offence, "{frame:?}: {error}");
        }
        let error = read::<Question, _>(&mut Cursor::new(vec![0, 0])).await.unwrap_err();
        assert!(!is_offence(&error), "{error}");
    }

    #[tokio::test]
    async fn a_frame_that_ends_early_is_refused() {
        let mut wire = Cursor::new(vec![0, 0, 0, 9, 1]);
        assert!(read::<Question, _>(&mut wire).await.is_err());
    }
}
