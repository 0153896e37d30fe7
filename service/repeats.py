"""What would fill the log if it were said each time."""

from time import monotonic

REPEAT_SECONDS = 60.0


class OnceAMinute:
    """Says whether what repeats is to be logged: the first time, while `logged_at` is None, then once a minute."""

    logged_at: float | None = None

    def is_due(self) -> bool:
        now = monotonic()
        if self.logged_at is not None and now - self.logged_at < REPEAT_SECONDS:
            return False
        self.logged_at = now
        return True
