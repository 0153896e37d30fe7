"""Lines out of a body that is still arriving."""

from collections.abc import AsyncIterator, Sequence

from service.errors import BodyTooLarge


async def blocks(pieces: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[list[bytes]]:
    """Complete lines, those that arrived together in one list; the last one may lack its newline.

    Raises BodyTooLarge as soon as a line has more than max_bytes, and what pieces raises.
    """
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        longest = max(map(len, lines), default=0)
        if longest > max_bytes or len(rest) > max_bytes:
            raise BodyTooLarge(f"a line has more than {max_bytes} bytes, which is the limit")
        if lines:
            yield lines
    if rest.strip():
        yield [rest]


def without_blanks(lines: Sequence[bytes], places: Sequence[int]) -> tuple[list[bytes], list[int]]:
    """The lines that say something, and their places."""
    kept = [(line, place) for line, place in zip(lines, places, strict=True) if line.strip()]
    return [line for line, _ in kept], [place for _, place in kept]
