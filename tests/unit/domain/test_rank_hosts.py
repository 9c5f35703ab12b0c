"""The file of hosts over which a model is spread: what it may say, and the entry and field of what it may not."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.footprint import RESERVE_BYTES, MemoryFit, MemoryReading, judge_memory
from mlxk.domain.ranks import Division, HostAccount, HostFile, RankHost, SpreadModel, read_hosts

GIB = 1024**3
FIRST = {"ssh": "mac1", "ips": ["192.0.2.1"]}


def test_hosts_are_read_in_the_form_of_the_launcher_of_mlx() -> None:
    second = {"ssh": "ada@mac2.local", "ips": ["192.0.2.2", "198.51.100.2"], "rdma": [None], "python": "/opt/py"}
    expected = (RankHost("mac1", "192.0.2.1"), RankHost("ada@mac2.local", "192.0.2.2", "/opt/py"))
    assert read_hosts([FIRST, second]) == HostFile(expected)
    whole = {"backend": "jaccl", "envs": ["MLX_METAL_FAST_SYNCH=1"], "hosts": [FIRST, second]}
    assert read_hosts(whole) == HostFile(expected, "jaccl")
    assert [host.is_here for host in read_hosts([{**FIRST, "ssh": "127.0.0.1"}, second]).hosts] == [True, False]


SECOND = {"ssh": "mac2", "ips": ["192.0.2.2"]}


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ("mac2", "host 2 is no object"),
        (None, "host 2 is no object"),
        ([["192.0.2.2:5000"]], "host 2 is no object"),
        ({"ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": 2, "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "", "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "mäc2", "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "mac2\n", "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "-oProxyCommand=touch x", "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "mac2 rm", "ips": ["192.0.2.2"]}, "host 2: ssh must be"),
        ({"ssh": "mac2"}, r"host 2 \(mac2\): ips must list"),
        ({"ssh": "mac2", "ips": []}, r"host 2 \(mac2\): ips must list"),
        ({"ssh": "mac2", "ips": "192.0.2.2"}, r"host 2 \(mac2\): ips must list"),
        ({"ssh": "mac2", "ips": [3221225986]}, r"host 2 \(mac2\): ips must list"),
        ({"ssh": "mac2", "ips": ["mac2.local"]}, "ips: 'mac2.local' is no IP address"),
        ({"ssh": "mac2", "ips": ["192.0.2.2", "mac2"]}, "ips: 'mac2' is no IP address"),
        ({"ssh": "mac2", "ips": ["192.0.2.2:5000"]}, "ips: '192.0.2.2:5000' is no IP address"),
        ({"ssh": "mac2", "ips": ["192.0.2.256"]}, "ips: '192.0.2.256' is no IP address"),
        ({"ssh": "mac2", "ips": ["1" * 5000]}, "ips: '1{59}… is no IP address"),
        ({"ssh": "mac2", "ips": ["0.0.0.0"]}, "ips: 0.0.0.0 is not the IPv4 address of one"),
        ({"ssh": "mac2", "ips": ["224.0.0.1"]}, "ips: 224.0.0.1 is not the IPv4 address of one"),
        ({"ssh": "mac2", "ips": ["255.255.255.255"]}, "ips: 255.255.255.255 is not the IPv4 address of one"),
        ({"ssh": "mac2", "ips": ["2001:db8::2"]}, "ips: 2001:db8::2 is not the IPv4 address of one"),
        ({"ssh": "mac2", "ips": ["192.0.2.1"]}, r"\(mac2\): ips: 192.0.2.1 is the address of two hosts, 1 and 2"),
        ({**SECOND, "python": "python3"}, r"host 2 \(mac2\): python must be"),
        ({**SECOND, "python": "/opt/\npython3"}, r"host 2 \(mac2\): python must be"),
        ({**SECOND, "python": ["/opt/python3"]}, r"host 2 \(mac2\): python must be"),
        ({**SECOND, "port": 5000}, r"host 2 \(mac2\): 'port' is no field of a host"),
        ({**SECOND, "adress": "192.0.2.2"}, r"host 2 \(mac2\): 'adress' is no field of a host"),
    ],
)
def test_a_wrong_entry_is_named_with_its_field(second: object, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        read_hosts([FIRST, second])


@pytest.mark.parametrize("document", [None, {}, [], [FIRST], "mac1", 3, {"hosts": {"mac1": FIRST}}, {"hosts": None}])
def test_fewer_than_two_hosts_are_refused(document: object) -> None:
    with pytest.raises(ValidationError, match="hosts: there must be a list of two hosts or more"):
        read_hosts(document)


HERE, THERE = ("localhost", "127.0.0.1", None), ("mac2", "192.0.2.2", None)


@pytest.mark.parametrize(
    ("fields", "fault", "hint"),
    [
        ({"host": []}, "'host' is no field of the file", "Did you mean hosts?"),
        ({"port": 5000}, "'port' is no field of the file", "Leave it out: free ports are chosen at each start."),
        ({"backend": "rings"}, "backend: 'rings' is none of any, ring, jaccl, jaccl-ring, nccl, mpi", None),
        ({"backend": ["ring"]}, r"backend: \['ring'\] is none of any", None),
        ({"hosts": [FIRST, *([SECOND] * 64)]}, "hosts: it lists 65, and 64 is the most", None),
    ],
)
def test_wrong_fields_of_the_file_are_named(fields: dict[str, object], fault: str, hint: str | None) -> None:
    with pytest.raises(ValidationError, match=fault) as refusal:
        read_hosts({"hosts": [FIRST, SECOND], **fields})
    assert refusal.value.hint == hint


@pytest.mark.parametrize(
    ("local_ranks", "hosts", "shares", "held"),
    [(1, (), 1, 1), (3, (), 3, 3), (1, (HERE, THERE), 2, 1), (1, (HERE, THERE, HERE), 3, 2)],
)
def test_a_division_has_a_rank_on_each_host_and_knows_those_of_this_machine(
    local_ranks: int, hosts: tuple[tuple[str, str, None], ...], shares: int, held: int
) -> None:
    division = Division.of(local_ranks, hosts, 5.0)
    assert (len(division.hosts), division.shares_here) == (shares, held)
    assert division.same_files is not bool(hosts)


SHARE = judge_memory(MemoryReading(8 * GIB, 8 * GIB), 9 * GIB, cache_per_token=1000, context_tokens=4096)


@pytest.mark.parametrize(
    ("available", "expected"), [(16 * GIB, MemoryFit.FITS), (4 * GIB, MemoryFit.TIGHT), (None, MemoryFit.UNKNOWN)]
)
def test_a_share_is_judged_by_the_memory_of_its_host(available: int | None, expected: MemoryFit) -> None:
    reading = None if available is None else MemoryReading(16 * GIB, available)
    found = SpreadModel.judged([RankHost("one", "192.0.2.1")], [HostAccount(reading)], SHARE)
    (verdict,) = (each.verdict for each in found.shares)
    assert (verdict.fit, verdict.budget) == (expected, None if reading is None else reading.budget)
    assert verdict.needed == 9 * GIB + 1000 * 4096 + RESERVE_BYTES


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"mlx": "0.32.4", "mlxk": "1.0"}, {"mlx": "0.32.4", "mlxk": "1.0", "other": "2"}, None),
        (
            {"mlx": "0.32.4", "mlxk": "1.0"},
            {"mlx": "0.31", "mlxk": "0.9"},
            "it has mlx 0.31, and the first host 0.32.4",
        ),
        ({"mlx": "0.32.4"}, {}, "it has mlx None, and the first host 0.32.4"),
        (None, {"mlx": "0.32.4"}, None),
        ({"mlx": "0.32.4"}, None, None),
    ],
)
def test_a_host_with_another_version_of_a_package_is_told_by_the_first_of_them(
    first: dict[str, str] | None, second: dict[str, str] | None, expected: str | None
) -> None:
    hosts = [RankHost("one", "192.0.2.1"), RankHost("two", "192.0.2.2")]

    def problem(why: str | None) -> list[str | None]:
        accounts = [HostAccount(versions=first), HostAccount(versions=second, problem=why)]
        return [each.problem for each in SpreadModel.judged(hosts, accounts, SHARE).shares]

    assert problem(None) == [None, expected]
    assert problem("no file") == [None, "no file"]


def test_shares_on_one_machine_must_fit_there_together() -> None:
    hosts = [RankHost("one", "192.0.2.1"), RankHost("localhost", "192.0.2.2"), RankHost("two", "192.0.2.3")]
    accounts = [HostAccount(MemoryReading(16 * GIB, 16 * GIB))] * 3
    fits = [each.verdict.fit for each in SpreadModel.judged(hosts, accounts, SHARE).shares]
    assert fits == [MemoryFit.EXCEEDS, MemoryFit.EXCEEDS, MemoryFit.FITS]
