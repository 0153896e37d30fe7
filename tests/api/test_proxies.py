"""Whose request a trusted proxy has sent, by X-Forwarded-For."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.proxies import MAX_BYTES, MAX_ENTRIES, TrustedProxies
from service.api.request import joined

PROXIES = TrustedProxies([ip_network(each) for each in ("10.0.0.0/8", "192.0.2.7", "fd00::/8")])


def client_of(peer, forwarded, proxies=PROXIES):
    return proxies.client_address(peer, {b"x-forwarded-for": forwarded})


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("198.51.100.9", b"198.51.100.1", "198.51.100.9"),  # not trusted
        ("", b"198.51.100.1", ""),
        ("::ffff:10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"203.0.113.5, 198.51.100.1, 192.0.2.7, 10.1.1.1", "198.51.100.1"),
        ("10.0.0.1", b"203.0.113.5,198.51.100.1\t, ,", "198.51.100.1"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.3"),  # no address is left: the farthest
        ("10.0.0.1", b" , ,", "10.0.0.1"),
        ("fd00::1", b"2001:DB8:0::1", "2001:db8::1"),
        ("fd00::1", b"[2001:db8::1]", "2001:db8::1"),
        ("fd00::1", b"[2001:db8::1]:443", "2001:db8::1"),
        ("10.0.0.1", b"198.51.100.1:50000", "198.51.100.1"),
        ("10.0.0.1", b"::ffff:198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"203.0.113.5, [::ffff:10.0.0.9]:1", "203.0.113.5"),  # trusted as 10.0.0.9
    ],
)
def test_client_is_the_rightmost_that_is_not_trusted(peer, forwarded, client):
    for _ in range(2):  # the second time from memory
        assert client_of(peer, forwarded) == client


@pytest.mark.parametrize(
    "entry",
    [
        b"unknown",
        b"_hidden",
        b"1.2.3",
        b"01.2.3.4",
        b"1.2.3.4.5",
        b"1.2.3.4:",
        b"1.2.3.4:x",
        b"[::1",
        b"::1]",
        b"[]",
        b"[1.2.3.4]x",
        b":::",
        b"fe80::1%eth0",
        b'"1.2.3.4"',
        b"for=1.2.3.4",
        b"1.2.3.4 5",
        b"1.2.3.4\x00",
        b"\xff\xfe",
        "١.2.3.4".encode(),
        b"1" * 500,
        b"10.0.0.0/8",
    ],
)
def test_entry_that_is_no_address_ends_the_way(entry):
    assert client_of("10.0.0.1", b"203.0.113.5, " + entry) == "10.0.0.1"
    assert client_of("10.0.0.1", b"203.0.113.5, " + entry + b", 10.0.0.2") == "10.0.0.2"
    assert client_of("10.0.0.1", entry + b", 203.0.113.5") == "203.0.113.5"


def test_without_proxies_or_a_header_it_is_the_connections():
    assert client_of("::ffff:10.0.0.1", b"198.51.100.1", TrustedProxies([])) == "10.0.0.1"
    assert PROXIES.client_address("10.0.0.1", {}) == "10.0.0.1"


def test_long_header_is_read_from_its_end():
    long = b"203.0.113.5, " + b", ".join([b"10.0.0.12"] * 5000)
    assert client_of("10.0.0.1", long) == "10.0.0.12"  # never 0.0.0.12, which a cut could leave
    for size in range(MAX_BYTES - 40, MAX_BYTES + 40):
        header = b"203.0.113.5" + b"10.11.12.13".rjust(size - 11)
        assert client_of("10.0.0.1", header.replace(b"5 ", b"5,")) in (
            "203.0.113.5",
            "10.11.12.13",
            "10.0.0.1",
        )
    for hops, client in ((MAX_ENTRIES - 1, "203.0.113.5"), (MAX_ENTRIES, "10.0.0.2")):
        assert client_of("10.0.0.1", b"203.0.113.5" + b",10.0.0.2" * hops) == client
    assert client_of("10.0.0.1", long + b",198.51.100.1") == "198.51.100.1"
    assert client_of("10.0.0.1", b"," * 60_000) == "10.0.0.1"


def test_lines_are_one_list():
    headers = [(b"x-forwarded-for", b"203.0.113.5, 198.51.100.1"), (b"a", b"b"), (b"x-forwarded-for", b"10.0.0.2")]
    assert PROXIES.client_address("10.0.0.1", joined(headers)) == "198.51.100.1"


@given(st.binary(max_size=2000) | st.text("0123456789abcdef:.,[] ", max_size=2000).map(str.encode))
def test_any_bytes_name_an_address(forwarded):
    assert client_of("198.51.100.9", forwarded) == "198.51.100.9"
    client = client_of("10.0.0.1", forwarded)
    assert str(ip_address(client)) == client


@given(st.lists(st.ip_addresses(), max_size=20))
def test_what_a_client_claims_changes_nothing(claimed):
    claim = ", ".join(map(str, claimed)).encode()
    assert client_of("10.0.0.1", claim + b", 198.51.100.1, 10.0.0.2") == "198.51.100.1"
