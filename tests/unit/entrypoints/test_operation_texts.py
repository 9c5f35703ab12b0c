"""What people read of a pull, a removal, a clone, a conversion, a training, and of a model on the hub."""

from typing import Any

import attrs
import pytest

from mlxk.application.ports.backends import ConvertedWeights
from mlxk.application.ports.model_cache import Removal
from mlxk.application.ports.model_directories import CopyMethod, Provenance
from mlxk.application.use_cases.browse_hub import RemoteDetails, SearchResult
from mlxk.application.use_cases.clone_model import CloneResult
from mlxk.application.use_cases.convert_model import ConvertMode, ConvertResult
from mlxk.application.use_cases.pull_model import PullResult, PullStatus
from mlxk.application.use_cases.remove_models import RemoveResult
from mlxk.application.use_cases.tune_model import TuningPlan
from mlxk.domain.charts import ChartRow, Series
from mlxk.domain.hub import (
    DownloadPlan,
    FoundModel,
    RemoteCard,
    RemoteFile,
    RemoteModel,
    SkippedFile,
    SkipReason,
)
from mlxk.domain.models.footprint import MemoryFit, MemoryReading, judge_memory
from mlxk.domain.models.model import HealthReport, ModelHandle, Origin, Workspace, healthy, unhealthy
from mlxk.domain.tuning.data import TrainingData
from mlxk.domain.tuning.training import ExampleLengths, TrainingPoint, TrainingResult, TuningSettings
from mlxk.entrypoints.cli.render.operations import clone_json, clone_text, convert_text, pull_text, remove_text
from mlxk.entrypoints.cli.render.remote_models import card_text, offer_lines, search_table
from mlxk.entrypoints.cli.render.tuning import chart, plan_lines

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = (RemoteFile("config.json", 500, "a"), RemoteFile("model.safetensors", 2 * 10**6, "b"))
MODEL = RemoteModel("org/m", COMMIT, FILES, made_for_mlx=True)
PLAN = DownloadPlan(MODEL, FILES, (SkippedFile("notes.md", SkipReason.UNUSED), SkippedFile("own.py", SkipReason.CODE)))
CACHED = ModelHandle("org/m", "/cache/m", Origin.CACHE, COMMIT)
BUILT_IN = ModelHandle("demo", "/models/demo", Origin.BUILT_IN)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (
            PullResult("org/m", PullStatus.SUCCESS, plan=PLAN, missing_bytes=500, report=healthy()),
            "pull: org/m — Downloaded 500B (2 files, 2.0MB in all)\n"
            "  not fetched: own.py (program code is never fetched)\n",
        ),
        (
            PullResult(
                "org/m", PullStatus.SUCCESS, plan=DownloadPlan(MODEL, FILES[:1], ()), report=unhealthy("No weights")
            ),
            "pull: org/m — Downloaded 0B (1 file, 500B in all)\n  unhealthy: No weights\n",
        ),
        (
            PullResult("org/m", PullStatus.DRY_RUN, plan=PLAN, missing_bytes=2 * 10**6),
            "pull: org/m — Would download 2.0MB (2 files, 2.0MB in all)\n  config.json  500B\n"
            "  model.safetensors  2.0MB\n  not fetched: own.py (program code is never fetched)\n",
        ),
        (
            PullResult("org/m", PullStatus.CANCELLED, handle=CACHED, report=unhealthy("Partial")),
            "pull: org/m — Download cancelled. Partial download kept. Use 'mlxk rm org/m' to delete if needed.\n",
        ),
        (
            PullResult("org/m", PullStatus.ALREADY_EXISTS, handle=CACHED, report=unhealthy("Odd")),
            "pull: org/m — Already in the cache\n",
        ),
        (
            PullResult("demo", PullStatus.ALREADY_EXISTS, handle=BUILT_IN),
            "pull: demo — Comes with the program\n",
        ),
    ],
    ids=["downloaded", "unhealthy", "dry run", "cancelled", "cached", "built in"],
)
def test_how_a_pull_ended(result: PullResult, text: str) -> None:
    assert pull_text(result) == text


def removed(*removals: Removal, done: bool = True) -> str:
    return remove_text(RemoveResult("org/*", removals, done, dry_run=not done))


def test_links_go_and_what_they_lead_to_stays() -> None:
    plain, link = Removal("org/a", (COMMIT,), True, 2000), Removal("org/b", (), True, 0, link_to="/disk/b")
    other, parts = attrs.evolve(link, name="org/c", link_to="/disk/c"), attrs.evolve(plain, linked_parts=("blobs",))
    assert removed(plain) == "rm: Deleted org/a, 2.0KB freed\n"
    assert removed(link) == "rm: Deleted the link org/b, 0B freed; only the link goes, what is in /disk/b stays\n"
    assert removed(link, other, done=False) == (
        "rm: Would delete 2 models, 0B; of 2 models only the links go, what they lead to stays\n"
        "  org/b  0B\n  org/c  0B\n"
    )
    assert removed(parts, link).splitlines()[0] == (
        "rm: Deleted 2 models, 2.0KB freed; only the link goes, what is in /disk/b stays; "
        "org/a/blobs: only the links go, what they lead to stays"
    )


WORKSPACE = Workspace(True, "org/m", COMMIT, "clone", clean=True)


@pytest.mark.parametrize(
    ("made", "copied", "report", "message", "text"),
    [
        (
            None,
            0,
            None,
            "Cancelled; the partial download was kept",
            "clone: org/m — Cancelled; the partial download was kept",
        ),
        (BUILT_IN, 0, healthy(), "Cloned without taking space", "clone: org/m → /models/demo (✓ healthy)"),
        (BUILT_IN, 1, None, "Cloned, 1 file as a plain copy", "clone: org/m → /models/demo"),
        (BUILT_IN, 2, None, "Cloned, 2 files as plain copies", "clone: org/m → /models/demo"),
    ],
)
def test_how_a_clone_ended(
    made: ModelHandle | None, copied: int, report: HealthReport | None, message: str, text: str
) -> None:
    methods = {CopyMethod.COPIED: copied, CopyMethod.CLONED: 5}
    workspace = None if made is None else WORKSPACE
    result = CloneResult(CACHED, made, Provenance("clone"), methods, report, workspace)
    assert clone_json(result)["message"] == message
    assert clone_text(result, quiet=False) == f"{text}\n"
    assert "✓" not in clone_text(result, quiet=True)


@pytest.mark.parametrize(("names", "layers"), [(("a",), "1 layer"), (("a", "b"), "2 layers")])
def test_layers_that_were_not_quantized_are_counted(names: tuple[str, ...], layers: str) -> None:
    weights, provenance = ConvertedWeights(3, names, 1000), Provenance("convert", bits=4)
    result = ConvertResult(
        CACHED, BUILT_IN, provenance, WORKSPACE, ConvertMode.QUANTIZE, weights, False, None, healthy()
    )
    assert convert_text(result).splitlines() == [
        "convert: org/m → /models/demo",
        "  Quantized to 4-bit successfully",
        f"  Kept as it is, since the group size does not fit: {layers}",
        "  ✓ Health check: passed",
    ]


VERDICT = judge_memory(MemoryReading(16 * 10**9, 12 * 10**9), 2 * 10**6, 100, 1000)
MEMORY = ["Memory:", "  Weights: 2.0MB"]
CARD = RemoteCard(MODEL, 1_234_567, None, "mlx", None, (), False, False, True, {"model_type": "llama"})
DETAILS = RemoteDetails(CARD, PLAN, None, 2 * 10**6, 10**9, VERDICT, 2048)


def test_a_card_shows_the_section_that_is_asked_for() -> None:
    facts = card_text(DETAILS, "files").splitlines()[:8]
    assert facts == [
        "Model: org/m@0123456 (on the hub)",
        "MLX: yes",
        "Library: mlx",
        "License: none stated",
        "Downloads: 1,234,567 in the last month",
        "Access: open",
        "Context length: 2048",
        "Download: 2.0MB, 500B of it in the cache; 1.0GB free on the disk",
    ]
    fetch = ["", "Fetch it: mlxk pull org/m"]
    assert card_text(DETAILS, "files").splitlines()[8:] == [
        "",
        "Files:",
        "  config.json (500B)",
        "  model.safetensors (2.0MB)",
        "  not fetched: notes.md (not needed to use the model)",
        "  not fetched: own.py (program code is never fetched)",
        *fetch,
    ]
    config = ["", "Config:", "{", '  "model_type": "llama"', "}"]
    assert card_text(DETAILS, "config").splitlines()[8:] == [*config, *fetch]
    assert card_text(DETAILS, "metadata").splitlines()[8:11] == ["", *MEMORY]


@pytest.mark.parametrize(
    ("changes", "access", "offered"),
    [
        ({"gated": True}, "gated, and shown to you", True),
        ({"private": True}, "private, and shown to you", True),
        ({"gated": True, "private": True}, "gated, and shown to you", True),
        ({"gated": True, "accessible": False}, "gated: accept its terms on the hub and set HF_TOKEN", False),
    ],
)
def test_who_may_fetch_a_model_is_said(changes: dict[str, Any], access: str, offered: bool) -> None:
    shown = card_text(attrs.evolve(DETAILS, card=attrs.evolve(CARD, **changes)), "config")
    assert f"\nAccess: {access}\n" in shown
    assert ("Fetch it: mlxk pull org/m" in shown) is offered


def test_what_is_offered_names_licence_size_and_memory_and_warns_of_other_formats() -> None:
    first = "org/m: licence not stated, download 2.0MB, 500B of it in the cache; 1.0GB free on the disk"
    assert offer_lines(DETAILS)[:3] == (first, *MEMORY)
    other = attrs.evolve(CARD, license="mit", model=attrs.evolve(MODEL, made_for_mlx=False))
    bare = attrs.evolve(DETAILS, card=other, missing_bytes=0, free_bytes=None, verdict=None)
    assert offer_lines(bare) == (
        "org/m: licence mit, download 2.0MB, all of it in the cache",
        "It is not marked as an MLX model; it runs only if MLX knows its architecture.",
    )


@pytest.mark.parametrize(
    ("downloads", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (12_345, "12.3k"), (10**6, "1.0M"), (12_345_678, "12.3M")],
)
def test_downloads_are_rounded_to_thousands_and_millions(downloads: int, shown: str) -> None:
    model = FoundModel("org/m", True, None, downloads, None, True)
    row = search_table([SearchResult(model, MemoryFit.UNKNOWN)], None).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")] == ["org/m", "yes", "?", "?", shown, "?, gated"]


POINTS = (
    TrainingPoint(0, 0.0, valid_loss=3.0),
    TrainingPoint(10, 1.0, 2.5, None, 100.0),
    TrainingPoint(20, 2.0, 2.0, 2.25, 120.0),
)
TRAINED = TrainingResult(20, None, False, POINTS, 1000, 500, 2.0, 10**6)


def test_a_chart_of_a_training_has_loss_and_speed_from_the_first_step_on() -> None:
    drawn = chart(TRAINED, "taught")
    training, speed = Series("training", (2.5, 2.0)), Series("speed", (100.0, 120.0))
    assert (drawn.title, drawn.seconds, drawn.regions) == ("taught", (10, 20), ())
    assert drawn.rows == (
        ChartRow("Loss", "nats a token", (training, Series("validation", (None, 2.25)))),
        ChartRow("Speed", "tokens/s", (speed,)),
    )
    unvalidated = chart(attrs.evolve(TRAINED, points=(attrs.evolve(POINTS[1]),)), "taught")
    assert [each.name for each in unvalidated.rows[0].series] == ["training"]
    assert chart(attrs.evolve(TRAINED, points=POINTS[:1]), "taught").seconds == (0,)


def test_a_plan_says_what_is_cut_and_where_a_training_goes_on() -> None:
    settings = TuningSettings(steps=20, batch_size=2, layers=1, max_length=64, learning_rate=1e-3, accumulation=2)
    lengths = ExampleLengths(64, 100, 40, (3,), 80)
    plan = TuningPlan(settings, TrainingData((), ()), lengths, VERDICT, 10)
    needed = plan_lines(plan)[2].rpartition("; ")[2]
    assert plan_lines(plan) == [
        "0 examples, none for validation; the longest has 64 tokens, 40 of 100 are learned",
        "Cut to 64 tokens: 1 example (line 3), the longest of 80",
        f"lora, 1 layer, 20 steps of 4, learning rate 0.001; {needed}",
        "Continued after step 10",
    ]
    assert plan_lines(attrs.evolve(plan, resumed_at=None))[-1].startswith("lora")
