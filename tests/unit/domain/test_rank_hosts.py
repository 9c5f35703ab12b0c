"""The file of hosts over which a model is spread: what it may say, and the entry and field of what it may not."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.ranks import RankHost, read_hosts

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
