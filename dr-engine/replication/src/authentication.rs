//! Proving to the server who we are: 55.2.1 "Start-up", 55.3 "SASL Authentication".

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use crate::frame::Frame;
use crate::rows::server_message;
use crate::wire::Wire;
use crate::{Address, ReplicationError};

/// Answers the server's questions until it lets us in.
pub(crate) struct Authentication<'a> {
    wire: &'a mut Wire,
    address: &'a Address,
    /// Whether nobody on the way can read what is sent.
    is_private: bool,
    scram: Option<Scram>,
}

/// How far the mutual proof is.
enum Scram {
    /// We have said who we are.
    Begun(ScramSha256),
    /// We have proven it, and the server has not.
    Proven(ScramSha256),
    /// Both have.
    Done,
}

impl<'a> Authentication<'a> {
    pub(crate) fn new(wire: &'a mut Wire, address: &'a Address, is_private: bool) -> Self {
        Self {
            wire,
            address,
            is_private,
            scram: None,
        }
    }

    /// # Errors
    /// When the server refuses us, or has not proven that it knows the password's verifier where the
    /// method asks for it.
    pub(crate) async fn run(mut self) -> Result<(), ReplicationError> {
        loop {
            match self.wire.receive().await? {
                Frame::Message(Message::AuthenticationOk) => return self.finish(),
                Frame::Message(Message::ErrorResponse(body)) => {
                    return Err(refused(self.wire, &body));
                }
                Frame::Message(Message::NoticeResponse(_)) => {}
                Frame::Message(message) => self.answer(message)?,
                frame @ Frame::CopyBoth => {
                    return Err(self.wire.unexpected(&frame, "before authentication"));
                }
            }
        }
    }

    fn finish(self) -> Result<(), ReplicationError> {
        match self.scram {
            None | Some(Scram::Done) => Ok(()),
            // Whoever let us in so does not know the password's verifier.
            Some(_) => Err(self.failed("it has not proven that it knows the password")),
        }
    }

    fn answer(&mut self, message: Message) -> Result<(), ReplicationError> {
        match message {
            Message::AuthenticationCleartextPassword => {
                let password = self.password()?;
                if !self.is_private {
                    return Err(ReplicationError::PasswordExposed {
                        place: self.address.place(),
                    });
                }
                self.say(|output| frontend::password_message(password.as_bytes(), output))
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.password()?.as_bytes();
                let hash = md5_hash(self.address.user.as_bytes(), password, body.salt());
                self.say(|output| frontend::password_message(hash.as_bytes(), output))
            }
            Message::AuthenticationSasl(body) => self.begin_scram(&body),
            Message::AuthenticationSaslContinue(body) => {
                let Some(Scram::Begun(mut scram)) = self.scram.take() else {
                    return Err(self.failed("it goes on with what was not begun"));
                };
                let updated = scram.update(body.data());
                updated.map_err(|error| self.failed(error.to_string()))?;
                self.say(|output| frontend::sasl_response(scram.message(), output))?;
                self.scram = Some(Scram::Proven(scram));
                Ok(())
            }
            Message::AuthenticationSaslFinal(body) => {
                let Some(Scram::Proven(mut scram)) = self.scram.take() else {
                    return Err(self.failed("it ends what was not begun"));
                };
                let finished = scram.finish(body.data());
                finished.map_err(|error| self.failed(error.to_string()))?;
                self.scram = Some(Scram::Done);
                Ok(())
            }
            Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential => {
                Err(self.failed("its method (GSSAPI, SSPI or older) is not supported"))
            }
            other => {
                let frame = Frame::Message(other);
                Err(self.wire.unexpected(&frame, "before authentication"))
            }
        }
    }

    fn begin_scram(&mut self, body: &AuthenticationSaslBody) -> Result<(), ReplicationError> {
        let offered = body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256));
        if !offered.map_err(|error| self.failed(error.to_string()))? {
            return Err(self.failed("it offers no SCRAM-SHA-256"));
        }
        if self.scram.is_some() {
            return Err(self.failed("it begins twice"));
        }
        let password = self.password()?.as_bytes();
        let scram = ScramSha256::new(password, ChannelBinding::unsupported());
        self.say(|output| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), output))?;
        self.scram = Some(Scram::Begun(scram));
        Ok(())
    }

    fn password(&self) -> Result<&'a str, ReplicationError> {
        (self.address.password.as_deref())
            .filter(|password| !password.is_empty())
            .ok_or_else(|| ReplicationError::PasswordMissing {
                place: self.address.place(),
                user: self.address.user.clone(),
            })
    }

    fn say(
        &mut self,
        write: impl FnOnce(&mut bytes::BytesMut) -> std::io::Result<()>,
    ) -> Result<(), ReplicationError> {
        write(self.wire.output()).map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, what: impl Into<String>) -> ReplicationError {
        ReplicationError::Authentication {
            place: self.address.place(),
            what: what.into(),
        }
    }
}

/// The error for one of the server's before it has let us in.
pub(crate) fn refused(
    wire: &Wire,
    body: &postgres_protocol::message::backend::ErrorResponseBody,
) -> ReplicationError {
    let server = match server_message(body) {
        Ok(message) => Box::new(message),
        Err(what) => return wire.protocol(what),
    };
    let place = wire.place.clone();
    if is_unavailable(&server.code) {
        ReplicationError::Unavailable { place, server }
    } else {
        ReplicationError::Refused { place, server }
    }
}

/// Class 57P, "operator intervention": starting up, shutting down, ended by an administrator.
pub(crate) fn is_unavailable(code: &str) -> bool {
    code.starts_with("57P")
}
