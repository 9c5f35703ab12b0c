"""A BLAS of the machine is used where there is no GPU: found by the system's loader, said, and switched off by name.

The library of these tests is their own, since the machine need not have one; it is compiled on the spot.
"""

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from models.tiny_embedding import build_bert
from models.tiny_models import build
from serving.program import ServedProgram

import mlxk
from mlxk.adapters.mlx import blas
from mlxk.adapters.mlx.loading import widening
from mlxk.adapters.mlx.registry import computes_on_cpu
from mlxk.domain.models.footprint import WeightForm

Program = Callable[..., "subprocess.CompletedProcess[str]"]
CC = shutil.which("cc")
pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not computes_on_cpu(sys.platform), reason="a BLAS is used where no GPU computes"),
]
compiled = pytest.mark.skipif(CC is None, reason="the library is compiled here, and there is no C compiler")

SOURCE = """
#define IN(p, t, r, c, ld) ((t) == 111 ? (p)[(r) * (ld) + (c)] : (p)[(c) * (ld) + (r)])
#define GEMM(NAME, T) void NAME(int order, int ta, int tb, int m, int n, int k, T alpha, const T *a, int lda, \\
    const T *b, int ldb, T beta, T *c, int ldc) { \\
    for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) { \\
        double sum = 0; \\
        for (int l = 0; l < k; l++) sum += (double)IN(a, ta, i, l, lda) * IN(b, tb, l, j, ldb); \\
        c[i * ldc + j] = alpha * sum + (beta ? beta * c[i * ldc + j] : 0); \\
    } \\
}
GEMM(cblas_sgemm, float)
GEMM(cblas_dgemm, double)
"""
COMPLEX = "void cblas_cgemm(void) {}\n"
CONFIG = 'const char *openblas_get_config(void) {{ return "OpenBLAS 9.9.9 NO_LAPACK {}"; }}\n'


def library(folder: Path, source: str, name: str = "libopenblas.so.0") -> str:
    """Compile a library that the system's loader finds when it is told the folder, which is returned."""
    assert CC is not None
    folder.mkdir(exist_ok=True)
    (folder / "blas.c").write_text(source)
    subprocess.run([CC, "-O2", "-shared", "-fPIC", "-o", folder / name, folder / "blas.c"], check=True)
    return str(folder)


WITH_BLAS = {"MLXK2_BLAS": "auto"}
"""Other tests run without, to have the same numbers everywhere."""


WATCH = """
import atexit, sys

def say():
    blas = sys.modules.get("mlxk.adapters.mlx.blas")
    print("at the end:", blas and blas.in_use(), file=sys.stderr)

atexit.register(say)
"""
"""Has a program say which library it has loaded."""


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a library that fits."""
    return library(tmp_path_factory.mktemp("fitting"), SOURCE + COMPLEX + CONFIG.format(""))


@compiled
def test_show_and_run_use_the_library_and_say_so(mlxk: Program, fitting: str) -> None:
    def shown(**variables: str) -> tuple[str, str | None]:
        memory = json.loads(mlxk("show", "demo", "--json", **variables).stdout)["data"]["memory"]
        return memory["weights_type"], memory["matrix_library"]

    def answer(*flags: str) -> "subprocess.CompletedProcess[str]":
        return mlxk("run", "demo", "Hi", "-v", "--temperature", "0", *flags, **WITH_BLAS, LD_LIBRARY_PATH=fitting)

    # With a library, plain weights of 16 bits are faster in 32 bits as well.
    assert shown(**WITH_BLAS, LD_LIBRARY_PATH=fitting) == ("float32", "OpenBLAS 9.9.9")
    assert shown(LD_LIBRARY_PATH=fitting, MLXK2_BLAS="off") == ("model", None)
    used, unused = answer(), answer("--blas", "off")
    assert "[matrices are multiplied by OpenBLAS 9.9.9]" in used.stderr
    assert "OpenBLAS" not in unused.stderr
    assert "[matrices are multiplied slowly, since no library for it may be used]" in unused.stderr
    assert used.stdout
    assert unused.stdout


@compiled
@pytest.mark.parametrize(
    "command",
    [
        ("bench", "demo", "-p", "8", "-n", "2", "-r", "1"),
        ("run", "demo-speech", "--audio", "demo-speech/hello.wav", "-v"),
        ("embed", "./bert", "Hello", "--cpu-dtype", "model"),
    ],
    ids=["bench", "transcription", "embeddings"],
)
def test_what_leases_models_of_the_engine_computes_with_the_library(
    mlxk: Program, tmp_path: Path, fitting: str, command: tuple[str, ...]
) -> None:
    """Its process loads it, which nothing can once MLX is there."""
    build_bert(tmp_path / "bert")
    watched = tmp_path / "sitecustomize.py"
    watched.write_text(WATCH)
    variables = {"PYTHONPATH": str(tmp_path), "MLXK2_ENABLE_ALPHA_FEATURES": "1", "LD_LIBRARY_PATH": fitting}
    done = mlxk(*command, **WITH_BLAS, **variables)
    assert done.returncode == 0, done.stderr
    assert "at the end: OpenBLAS 9.9.9" in done.stderr


@compiled
def test_the_server_uses_the_library_and_says_so(
    fitting: str, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    environment = {**program_environment, **WITH_BLAS, "LD_LIBRARY_PATH": fitting}
    with (
        open(tmp_path / "log", "wb") as log,
        ServedProgram(tmp_path, environment, "--model", "demo", stderr=log) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer,
    ):
        metrics = answer.read().decode()
    said = (tmp_path / "log").read_text()

    assert "\nmlxk_blas 1\n" in metrics
    assert "\nmlxk_models_widened 1\n" in metrics
    assert "multiplied by OpenBLAS 9.9.9" in said


@compiled
@pytest.mark.parametrize(
    "source",
    [SOURCE + CONFIG.format(""), SOURCE + COMPLEX + CONFIG.format("USE64BITINT")],
    ids=["a function is missing", "integers of 64 bits"],
)
def test_a_library_that_does_not_fit_is_left_alone(source: str, mlxk: Program, tmp_path: Path) -> None:
    # It hides one of the machine's, if there is one.
    done = mlxk("show", "demo", **WITH_BLAS, LD_LIBRARY_PATH=library(tmp_path / "odd", source))

    assert "OpenBLAS 9.9.9" not in done.stdout


@compiled
@pytest.mark.parametrize(("works", "taken"), [(True, "MKL"), (False, "None")])
def test_a_library_that_may_end_its_process_is_tried_in_another_one(works: bool, taken: str, tmp_path: Path) -> None:
    crashing = "#include <stdlib.h>\nvoid cblas_sgemm(void) { exit(2); }\nvoid cblas_dgemm(void) {}\n"
    source = (SOURCE if works else crashing) + COMPLEX + "void MKL_Get_Version_String(void) {}\n"
    folder = library(tmp_path / "intel", source, "libmkl_rt.so.9")
    asked = "from mlxk.adapters.mlx import blas; print(blas.take(['libnowhere.so.1', 'libmkl_rt.so.9']))"

    done = subprocess.run(
        [sys.executable, "-c", asked], env={"LD_LIBRARY_PATH": folder}, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{taken}\n", "")


def test_no_process_is_forked_of_one_that_computes() -> None:
    """A fork while OpenBLAS computes in another thread never returns; ``subprocess`` starts programs without one."""
    layers = Path(mlxk.__file__).parent
    sources = [path for name in ("adapters", "application", "entrypoints") for path in (layers / name).rglob("*.py")]
    assert len(sources) > 100
    forking = ("preexec_fn", "os.fork", "multiprocessing")
    assert [path.name for path in sources if any(word in path.read_text(encoding="utf-8") for word in forking)] == []


def test_nothing_is_loaded_once_mlx_is_there() -> None:
    assert blas.take(["libm.so.6"]) == blas.in_use()


@pytest.mark.parametrize(("bits", "mode", "size"), [(4, "affine", 64), (8, "affine", 32), (4, "mxfp4", 32)])
@pytest.mark.parametrize("bias", [False, True])
def test_unpacked_layers_compute_what_packed_ones_do(bits: int, mode: str, size: int, bias: bool) -> None:
    mx.random.seed(7)
    packed = nn.Linear(128, 96, bias=bias).to_quantized(group_size=size, bits=bits, mode=mode)
    unpacking = nn.Linear(128, 96, bias=bias).to_quantized(group_size=size, bits=bits, mode=mode)
    unpacking.update(packed.parameters())
    unpacking.__class__ = widening.UnpackingLinear
    unpacking.most_bytes = 4 * 128 * 40  # in three parts
    for rows in ((1, 1), (1, 7), (1, 8), (3, 50)):
        x = mx.random.normal((*rows, 128))
        expected, computed = packed(x), unpacking(x)
        assert mx.allclose(expected, computed, rtol=1e-4, atol=1e-5), rows
        assert computed.dtype == mx.float32
        if rows[0] * rows[1] < 8:
            assert mx.array_equal(expected, computed), rows


@pytest.mark.parametrize(("bits", "mode", "size"), [(4, "affine", 64), (8, "affine", 32), (4, "mxfp4", 32)])
def test_layers_that_are_unpacked_for_good_compute_what_packed_ones_do(bits: int, mode: str, size: int) -> None:
    def network() -> nn.Module:
        mx.random.seed(7)
        layers = nn.Sequential(nn.Embedding(50, 128), nn.Linear(128, 96), nn.Linear(96, 64, bias=False))
        nn.quantize(layers, group_size=32 if size == 64 else size, bits=bits, mode=mode)
        layers.update(tree_map(lambda each: each.astype(mx.bfloat16) if each.dtype == mx.float32 else each, layers))
        return layers

    wide, plain = network(), network()
    packed_bytes, bytes_held = widening.widen(wide), widening.widen(plain, WeightForm.PLAIN)
    tokens = mx.array([[3, 7, 49]])

    # A packed embedding in mxfp4 gives numbers of 16 bits.
    assert mx.allclose(wide(tokens), plain(tokens), rtol=1e-4, atol=1e-3 if mode == "mxfp4" else 1e-5)
    assert plain(tokens).dtype == mx.float32
    assert bytes_held == 4 * (50 * 128 + 128 * 96 + 96 + 96 * 64) > packed_bytes
    assert [type(each) for each in plain.layers] == [nn.Embedding, nn.Linear, nn.Linear]
    assert mx.allclose(plain.layers[0].as_linear(mx.ones((1, 128))), wide.layers[0].as_linear(mx.ones((1, 128))), 1e-4)


@compiled
def test_a_quantized_model_is_unpacked_where_much_memory_is_free_and_show_counts_it(
    fitting: str, mlxk: Program, tmp_path: Path
) -> None:
    build(tmp_path / "plain")
    mlx_lm.convert(str(tmp_path / "plain"), str(tmp_path / "packed"), quantize=True, q_bits=4, dtype="bfloat16")
    model, flags = str(tmp_path / "packed"), ("Hello world!", "--temperature", "0", "--max-tokens", "24", "--json")
    library = {**WITH_BLAS, "LD_LIBRARY_PATH": fitting}

    memory = json.loads(mlxk("show", model, "--json", **library).stdout)["data"]["memory"]
    parameters = sum(each.size for _, each in tree_flatten(mlx_lm.load(str(tmp_path / "plain"))[0].parameters()))
    answers = [
        json.loads(mlxk("run", model, *flags, **variables).stdout)["data"]["response"]
        for variables in (library, {"MLXK2_BLAS": "off", "MLXK2_CPU_DTYPE": "float32"})
    ]

    assert (memory["weights_type"], memory["weights_bytes"]) == ("float32", pytest.approx(4 * parameters, rel=0.02))
    assert "unpacked in float32" in mlxk("show", model, **library).stdout
    assert answers[0] == answers[1] != ""


def test_few_layers_are_unpacked_at_a_time() -> None:
    layers = [nn.Linear(512, 512, bias=False).to_quantized(group_size=64, bits=4) for _ in range(48)]
    for layer in layers:
        layer.__class__ = widening.UnpackingLinear
    x = mx.random.normal((8, 512))
    mx.eval(x, [layer.parameters() for layer in layers])
    mx.reset_peak_memory()
    before = mx.get_active_memory()

    for layer in layers:
        x = layer(x) / 16
    mx.eval(x)

    assert mx.get_peak_memory() - before < len(layers) / 3 * 4 * 512 * 512
