"""Text from files, made safe for a terminal: it may hold control characters or be very long."""


def printable(text: object, limit: int = 120) -> str:
    """The first line, control characters escaped, cut to `limit` characters."""
    line = str(text).strip().partition("\n")[0]
    line = line if line.isprintable() else ascii(line)[1:-1]
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
