"""What hosts say, and the findings that follow: rules, their text for people, and the report."""

from typing import Any

import attrs
import pytest

from mlxk.application.use_cases.diagnose import HostDiagnosis
from mlxk.domain.diagnosis import Fault, Finding
from mlxk.domain.host_checks import Examination, HostFacts, LinkFacts, judge_hosts, links_between
from mlxk.domain.models.footprint import MemoryReading, MemoryVerdict, judge_memory
from mlxk.domain.ranks import HostAccount, RankHost, SpreadModel
from mlxk.entrypoints.cli.render import findings as render

GIB = 1024**3
MACS = tuple(RankHost(f"mac{number}", f"192.168.7.{number}") for number in (1, 2, 3))
SAID = HostAccount(
    MemoryReading(16 * GIB, 8 * GIB), digest="a" * 64, backends={"ring": True, "jaccl": False}, cut="tensor"
)
VERSIONS = {"mlxk": "1.0", "mlx": "0.32.4", "mlx-lm": "0.32.2"}
WELL = tuple(
    HostFacts(host, seconds=0.5, python="3.12.1", versions=VERSIONS, reading=SAID.reading, account=SAID)
    for host in MACS
)
LINKS = tuple(
    LinkFacts(MACS[source], MACS[target], 0.0002, 1e9, MACS[source].address) for source, target in links_between(3)
)
SHARE = judge_memory(SAID.reading, 4 * GIB)


def found(share: MemoryVerdict | None = None, backend: str | None = None, **second: Any) -> tuple[Finding, ...]:
    """Return the findings about three hosts, of which the second differs."""
    hosts = (WELL[0], attrs.evolve(WELL[1], **second), WELL[2])
    spread = None if share is None else SpreadModel.judged(MACS, [each.account for each in hosts], share)
    return tuple(judge_hosts(Examination(hosts, LINKS), backend, spread, None if share is None else "org/m"))


def faults(findings: tuple[Finding, ...]) -> list[tuple[str | None, Fault]]:
    """Return the faults, each with its host."""
    return [(each.host, each.fault) for each in findings if each.fault]


def test_each_rank_connects_to_the_next_one_and_to_the_first() -> None:
    assert links_between(2) == ((0, 1), (1, 0))
    assert links_between(4) == ((0, 1), (1, 2), (2, 3), (3, 0), (1, 0), (2, 0))


def test_hosts_that_are_well_have_no_fault() -> None:
    assert faults(found(SHARE)) == []
    assert faults(found(backend="ring")) == []


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ({"obstacle": Fault.HOST_REFUSED, "obstacle_message": "Permission denied"}, Fault.HOST_REFUSED),
        ({"versions": {**VERSIONS, "mlx": "0.31"}}, Fault.VERSION_DIFFERS),
        ({"versions": {**VERSIONS, "mlx": None}}, Fault.VERSION_DIFFERS),
        ({"listen_fault": Fault.ADDRESS_ELSEWHERE}, Fault.ADDRESS_ELSEWHERE),
        ({"listen_fault": Fault.PORTS_TAKEN}, Fault.PORTS_TAKEN),
        ({"host": RankHost("mac2", "8.8.8.8")}, Fault.ADDRESS_PUBLIC),
        ({"account": HostAccount(backends={"ring": False}, digest="a" * 64)}, Fault.BACKEND_MISSING),
        ({"reading": None}, Fault.MEMORY_UNKNOWN),
        ({"account": attrs.evolve(SAID, digest="b" * 64)}, Fault.MODEL_DIFFERS),
        ({"account": attrs.evolve(SAID, digest=None, is_absent=True)}, Fault.MODEL_ABSENT),
        ({"account": attrs.evolve(SAID, digest=None, problem="no file")}, Fault.MODEL_NOT_COMPARED),
        ({"account": attrs.evolve(SAID, reading=MemoryReading(4 * GIB, 4 * GIB))}, Fault.SHARE_TOO_LARGE),
    ],
)
def test_what_is_wrong_with_a_host_is_a_fault_of_it(second: dict[str, Any], fault: Fault) -> None:
    assert faults(found(SHARE, **second)) == [("mac2", fault)]


def test_mlx_that_cannot_be_imported_is_named_with_the_reason() -> None:
    findings = found(account=HostAccount(problem="MLX cannot be imported: no libmlx.so"))
    assert faults(findings) == [("mac2", Fault.BACKEND_MISSING)]
    assert "MLX cannot be imported: no libmlx.so" in [each.evidence for each in findings]


def test_a_model_that_cannot_be_divided_and_a_layer_that_is_not_used_are_named() -> None:
    hosts = (attrs.evolve(WELL[0], account=attrs.evolve(SAID, cut=None, whole="3 does not divide 4")), *WELL[1:])
    spread = SpreadModel.judged(MACS, [each.account for each in hosts], SHARE)
    findings = tuple(judge_hosts(Examination(hosts, LINKS), "jaccl", spread, "org/m"))
    assert faults(findings) == [(None, Fault.MODEL_INDIVISIBLE), (None, Fault.BACKEND_NOT_USED)]
    assert findings[-6].evidence == "the file asks for jaccl; ranks exchange by MLX's ring over TCP"


def test_an_address_of_another_host_is_told_with_the_one_that_reaches_the_first() -> None:
    for own, tail in (("10.0.0.2", "; by 10.0.0.2 it reaches the first host"), (None, "")):
        (told,) = (each for each in found(listen_fault=Fault.ADDRESS_ELSEWHERE, own_address=own) if each.fault)
        assert told.evidence == f"192.168.7.2 is no address of this host{tail}"


@pytest.mark.parametrize(
    ("addresses", "evidence"),
    [
        (("127.0.0.1", "127.0.0.2"), "what ranks exchange does not leave this machine"),
        (
            ("127.0.0.1", "192.168.7.2"),
            "what ranks exchange is neither encrypted nor signed: this network is trusted",
        ),
    ],
)
def test_a_network_is_trusted_unless_all_hosts_are_this_machine(addresses: tuple[str, ...], evidence: str) -> None:
    hosts = tuple(
        attrs.evolve(well, host=RankHost(f"mac{rank}", address))
        for rank, (well, address) in enumerate(zip(WELL[:2], addresses, strict=True))
    )
    findings = judge_hosts(Examination(hosts, ()), None, None, None)
    assert [each.evidence for each in findings if each.check == "network"] == [evidence]


BROKEN = LinkFacts(MACS[1], MACS[2], problem="no answer within 20 seconds")


def test_links_that_are_broken_go_another_way_or_were_not_tried_are_named() -> None:
    elsewhere = attrs.evolve(LINKS[0], came_from="10.0.0.1")
    findings = tuple(judge_hosts(Examination(WELL, (elsewhere, BROKEN)), None, None, None))
    assert [each.fault for each in findings if each.fault] == [
        Fault.LINK_ELSEWHERE,
        Fault.LINK_BROKEN,
        Fault.LINKS_NOT_MEASURED,
    ]
    assert "mac1 to mac2: 0.20 ms, 1000.0 MB/s, from 10.0.0.1 and not from 192.168.7.1" in [
        each.evidence for each in findings
    ]
    assert "2 of 4 connections could not be tried" in [each.evidence for each in findings]


def test_the_text_keeps_to_sixty_columns() -> None:
    examination = Examination(WELL, (*LINKS, BROKEN))
    findings = tuple(judge_hosts(examination, "nccl", None, None))
    lines = [line for each in findings for line in render.finding_lines(each, 60)]
    table = render.links_text(examination, 60).splitlines()
    assert max(map(len, (*lines, *table))) <= 60
    assert table[0].split() == ["From", "|", "To", "|", "Round", "trip", "|", "Speed"]
    assert len(table) == 2 + len(LINKS)
    assert [render.title(each) for each in findings[:6:5]] == ["Host mac1", "Host mac2"]


def test_a_report_names_no_host_and_no_address() -> None:
    message = "ada@192.168.7.2: Permission denied (publickey)."
    findings = found(obstacle=Fault.HOST_REFUSED, obstacle_message=message)
    text = render.report(findings, "/home/ada", (), MACS)
    assert "failure reached (host_refused) of HOST2: USER@HOST: Permission denied (publickey)." in text.splitlines()
    assert not any(word in text for word in ("192.168", "mac1", "mac2", "ada"))


def test_a_report_names_no_user_whose_home_begins_with_the_name_of_this_one() -> None:
    findings = found(obstacle=Fault.HOST_REFUSED, obstacle_message="/home/adam/models, /home/ada/models, /home/ada")
    text = render.report(findings, "/home/ada", (), MACS)
    assert "of HOST2: /home/USER/models, ~/models, ~" in text


def test_a_host_that_did_not_answer_has_no_facts() -> None:
    silent = HostFacts(MACS[1], Fault.HOST_SILENT, "no answer within 20 seconds")
    examination = Examination((WELL[0], silent, WELL[2]), ())
    spread = SpreadModel.judged(MACS, [each.account for each in examination.hosts], SHARE)
    data: Any = render.hosts_json(HostDiagnosis((), examination, spread))
    host = data["hosts"][1]
    assert (host["answers"], host["python"], host["versions"], host["backends"]) == (False, None, None, [])
    assert (host["memory_bytes"], host["fit"], host["files"], data["links"]) == (None, "unknown", "unknown", [])
