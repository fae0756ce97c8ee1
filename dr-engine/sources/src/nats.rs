//! NATS JetStream streams.
