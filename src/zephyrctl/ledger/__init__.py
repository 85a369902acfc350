"""Every request and every reply, durable, so that no reply is paid for twice."""
