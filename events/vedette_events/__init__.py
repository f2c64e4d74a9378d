"""The event schema, batch framing and the C helpers of the event path."""
