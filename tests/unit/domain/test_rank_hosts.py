"""The file of hosts over which a model is spread: what it may say, and the entry and field of what it may not."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.footprint import RESERVE_BYTES, MemoryFit, MemoryReading, judge_memory
from mlxk.domain.ranks import RankHost, judge_share, read_hosts

GIB = 1024**3
FIRST = {"ssh": "mac1", "ips": ["192.0.2.1"]}


def test_hosts_are_read_in_the_form_of_the_launcher_of_mlx() -> None:
    second = {"ssh": "ada@mac2.local", "ips": ["192.0.2.2", "198.51.100.2"], "rdma": [None], "python": "/opt/py"}
    expected = (RankHost("mac1", "192.0.2.1"), RankHost("ada@mac2.local", "192.0.2.2", "/opt/py"))
    assert read_hosts([FIRST, second]) == expected
    assert read_hosts({"backend": "ring", "hosts": [FIRST, second]}) == expected
    assert [host.is_here for host in read_hosts([{**FIRST, "ssh": "127.0.0.1"}, second])] == [True, False]


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ("mac2", "host 2 is no object"),
        ({"ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "-oProxyCommand=touch x", "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "mac2 rm", "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "mac2"}, r"host 2 \(mac2\): ips must list"),
        ({"ssh": "mac2", "ips": []}, r"host 2 \(mac2\): ips must list"),
        ({"ssh": "mac2", "ips": ["mac2.local"]}, "'mac2.local' is no IP address"),
        ({"ssh": "mac2", "ips": ["0.0.0.0"]}, "is not the IPv4 address of one"),
        ({"ssh": "mac2", "ips": ["2001:db8::2"]}, "is not the IPv4 address of one"),
        ({"ssh": "mac2", "ips": ["192.0.2.1"]}, "192.0.2.1 is the address of two hosts"),
        ({"ssh": "mac2", "ips": ["192.0.2.2"], "python": "python3"}, r"host 2 \(mac2\): python must be"),
    ],
)
def test_a_wrong_entry_is_named(second: object, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        read_hosts([FIRST, second])


@pytest.mark.parametrize("document", [None, {}, [], [FIRST], "mac1"])
def test_fewer_than_two_hosts_are_refused(document: object) -> None:
    with pytest.raises(ValidationError, match="two hosts or more"):
        read_hosts(document)


@pytest.mark.parametrize(
    ("shares", "available", "expected"),
    [(2, 16 * GIB, MemoryFit.EXCEEDS), (3, 16 * GIB, MemoryFit.FITS), (3, 4 * GIB, MemoryFit.TIGHT)],
)
def test_a_share_has_its_part_of_the_weights_and_the_whole_cache(
    shares: int, available: int, expected: MemoryFit
) -> None:
    whole = judge_memory(MemoryReading(8 * GIB, 8 * GIB), 24 * GIB, cache_per_token=1000, context_tokens=4096)
    share = judge_share(whole, MemoryReading(16 * GIB, available), shares)
    assert share.needed == 24 * GIB // shares + 1000 * 4096 + RESERVE_BYTES
    assert (share.fit, share.budget) == (expected, MemoryReading(16 * GIB, available).budget)


def test_a_share_on_a_machine_that_says_nothing_gives_no_verdict() -> None:
    share = judge_share(judge_memory(MemoryReading(16 * GIB, 16 * GIB), GIB), None, 2)
    assert (share.fit, share.budget) == (MemoryFit.UNKNOWN, None)
