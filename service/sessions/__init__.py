"""Sessions: exactly-once steps, their queue, their cache and what a retry gets."""
