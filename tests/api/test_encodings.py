"""gzip, zstd and deflate: the same bytes however they are cut; garbage and endless data are refused."""

import asyncio
import gzip
import zlib

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from service.api.encodings import MAX_EMPTY_FRAMES, PIECE_BYTES, compressed, decompressed
from service.api.request import Reply, Request
from service.errors import MalformedBody, UnsupportedMediaType

PACK = {"gzip": gzip.compress, "zstd": zstd.compress, "deflate": zlib.compress}
each_encoding = pytest.mark.parametrize("encoding", PACK)


def pieces(encoding, *chunks):
    async def arriving():
        for chunk in chunks:
            yield chunk

    async def gathered():
        return [piece async for piece in decompressed(encoding, arriving())]

    return asyncio.run(gathered())


def unpacked(encoding, *chunks):
    return b"".join(pieces(encoding, *filter(None, chunks)))


@given(st.lists(st.binary(max_size=900), min_size=1, max_size=3), st.sampled_from([*PACK]), st.integers(0, 3000))
def test_cuts_and_members_change_nothing(parts, encoding, place):
    whole = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.api.encodings.COMPRESS_FROM_BYTES", 0)
        asked = Request("POST", "/", b"", {b"accept-encoding": encoding.encode()}, "a", "r1")
        reply = asyncio.run(compressed(Reply(200, b"text/plain", parts), asked))
    assert all(reply.body)
    for packed in (b"".join(map(PACK[encoding], parts)), b"".join(reply.body)):
        assert unpacked(encoding, packed[:place], packed[place:]) == whole
        assert unpacked(encoding, *(packed[index : index + 1] for index in range(len(packed)))) == whole


@given(st.binary(max_size=900), st.integers(0, 9))
def test_raw_deflate_is_read_too(whole, level):
    packer = zlib.compressobj(level, wbits=-15)
    packed = packer.compress(whole) + packer.flush()
    assert unpacked("deflate", *(packed[index : index + 1] for index in range(len(packed)))) == whole


@pytest.mark.parametrize("wbits", [-15, 15])
def test_no_bit_is_left_behind_a_full_piece(wbits):
    """zlib has read all of some of these when a piece is full."""
    for size in range(PIECE_BYTES, PIECE_BYTES + 900):
        packer = zlib.compressobj(9, wbits=wbits)
        packed = packer.compress(bytes(size)) + packer.flush()
        assert unpacked("deflate", packed) == bytes(size)


@each_encoding
def test_bomb_comes_in_pieces(encoding):
    sizes = [len(piece) for piece in pieces(encoding, PACK[encoding](bytes(5_000_000)))]
    assert max(sizes) <= PIECE_BYTES
    assert sum(sizes) == 5_000_000


@each_encoding
def test_truncated_and_garbled_data(encoding):
    packed = PACK[encoding](b"some text that is long enough" * 9)
    with pytest.raises(MalformedBody, match="ends too early"):
        unpacked(encoding, packed[:-3])
    with pytest.raises(MalformedBody, match="ends too early"):
        unpacked(encoding)
    for garbled in (b"no such data at all", packed + b"nor this"):
        with pytest.raises(MalformedBody, match=f"is not {encoding} data"):
            unpacked(encoding, garbled)


@each_encoding
def test_empty_frames_have_a_limit(encoding):
    empty, full = PACK[encoding](b""), PACK[encoding](b"x")
    assert unpacked(encoding, full + empty * MAX_EMPTY_FRAMES + full) == b"xx"
    with pytest.raises(MalformedBody, match="more than 16 empty frames"):
        unpacked(encoding, empty * (MAX_EMPTY_FRAMES + 1) + full)


@pytest.mark.parametrize("window", [23, 24])
def test_window_is_at_most_8_mib(window):
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window})
    packed = packer.compress(b"x") + packer.flush()
    if window == 23:
        assert unpacked("zstd", packed) == b"x"
    else:
        with pytest.raises(MalformedBody):
            unpacked("zstd", packed)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip"])
def test_other_encodings_are_refused(encoding):
    with pytest.raises(UnsupportedMediaType, match=f"'{encoding}'"):
        pieces(encoding)
