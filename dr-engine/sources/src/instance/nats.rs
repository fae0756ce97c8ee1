//! Private NATS servers.
