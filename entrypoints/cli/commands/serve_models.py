"""``serve`` and ``embed-serve``: the server for clients of several APIs, and one for embeddings alone."""

import argparse
import os
from collections.abc import Sequence

from mlxk.domain.errors import FeatureGateError, UsageError
from mlxk.domain.models.kv_cache import TURBOQUANT, TURBOQUANT_BITS, TURBOQUANT_USUAL_BITS
from mlxk.entrypoints import server_log
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    add_pull_argument,
    add_ranks_argument,
    complete_models,
    fetch_absent,
    note_backend,
    suggesting_pull,
)
from mlxk.entrypoints.cli.generation_arguments import (
    add_activations_argument,
    add_cache_arguments,
    add_draft_arguments,
)
from mlxk.entrypoints.cli.output import DONE, Output, success_line
from mlxk.entrypoints.cli.processes import background_server
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.server_settings import server_settings
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.setting_table import LOG_LEVELS
from mlxk.entrypoints.settings import ServerSettings
from mlxk.entrypoints.start_checks import offers_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare address, limits, access and log."""
    model = parser.add_argument("-m", "--model", metavar="MODEL", help="have this model in memory from the start")
    complete_models(model)
    default = parser.add_argument(
        "--default-model", metavar="MODEL", help="have this model answer to names that no model has"
    )
    complete_models(default)
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="have a model answer to a further name, such as gpt-4o-mini=MODEL",
    )
    draft = parser.add_argument(
        "--draft-model", metavar="MODEL", help="have a smaller model propose tokens to that of --model"
    )
    complete_models(draft)
    add_draft_arguments(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="serve a LoRA adapter of the model under a name of its own",
    )
    pin = parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="MODEL",
        help="have this model in memory from the start, and keep it when it is idle",
    )
    complete_models(pin)
    add_pull_argument(parser)
    place = parser.add_argument_group("where")
    place.add_argument("--host", metavar="HOST", help="address to listen on (127.0.0.1)")
    place.add_argument("--port", type=int, metavar="N", help="port to listen on; 0 takes any free one (8000)")
    place.add_argument("--embed-backend", metavar="URL", help="have another server make the vectors")
    add_ranks_argument(place)
    _add_limits(parser.add_argument_group("limits"))
    _add_thinking(parser.add_argument_group("reasoning", "Where a request does not say otherwise."))
    _add_safety(parser.add_argument_group("who may ask"))
    log = parser.add_argument_group("log and life")
    log.add_argument("--log-level", type=str.lower, choices=LOG_LEVELS, help="least severe events to log (info)")
    log.add_argument("--log-json", action=argparse.BooleanOptionalAction, help="log as JSON, one object a line")
    log.add_argument("--otlp", action=argparse.BooleanOptionalAction, help="send traces to an OpenTelemetry collector")
    log.add_argument("-v", "--verbose", action="store_true", help="the same as --log-level debug")
    log.add_argument("--background", action="store_true", help="go on in the background once the server is ready")
    log.add_argument("--drain-timeout", type=float, metavar="S", help="seconds answers may take to finish (30)")
    log.add_argument("--reload", action="store_true", help="restart when mlxk's own source changes")
    log.add_argument("--until-eof", action="store_true", help="stop when standard input ends, as its sender does")
    log.add_argument(
        "--supervisor",
        action=argparse.BooleanOptionalAction,
        help="restart the server when it dies (yes), or serve in this process",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens of an answer when a request names no limit")
    group.add_argument("--max-streams", type=int, metavar="N", help="answers computed at the same time (32)")
    group.add_argument("--max-queue", type=int, metavar="N", help="answers that may wait for their turn (96)")
    group.add_argument("--max-body", type=int, metavar="MIB", help="size of a request (72)")
    group.add_argument("--keep-alive", type=float, metavar="S", help="seconds after which an idle model is unloaded")
    group.add_argument(
        "--vision-cache-size", type=int, metavar="MIB", help="what a model keeps of images for later prompts (512)"
    )
    group.add_argument("--memory-budget", type=int, metavar="MIB", help="what models in memory may take together")
    group.add_argument("--prefix-cache-dir", metavar="DIR", help="keep prompts in a folder, for later starts")
    group.add_argument(
        "--prefix-cache-bits", type=int, metavar="N", help="quantize kept prompts to 8 or 4 bits before any is dropped"
    )
    group.add_argument("--prefix-cache-disk", type=float, metavar="GIB", help="what they may take there (10)")
    add_cache_arguments(group, "keep keys and values in 8 or 4 bits")
    group.add_argument("--max-kv-size", type=int, metavar="N", help="remember only the last N tokens of each answer")
    add_activations_argument(group)
    add_cpu_argument(group)
    group.add_argument(
        "--strict-memory", action=argparse.BooleanOptionalAction, help="refuse models beyond the memory budget"
    )
    group.add_argument(
        "--strict-capabilities",
        action=argparse.BooleanOptionalAction,
        help="refuse tools for models that are not made for them",
    )
    group.add_argument(
        "--top-logprobs-k", type=int, metavar="N", help="alternatives with a log probability at most (20)"
    )
    group.add_argument("--chunk", type=int, metavar="N", help="images described together, 1 to 5 (1)")
    group.add_argument(
        "--image-metadata",
        action=argparse.BooleanOptionalAction,
        help="begin answers about images with a table of their metadata",
    )


def _add_thinking(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--enable-thinking",
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="have models that can reason do so first, or not",
    )
    group.add_argument("--thinking-budget", type=int, metavar="N", help="most tokens of reasoning before the answer")
    group.add_argument("--thinking-start-token", metavar="TEXT", help="begins reasoning, where it is not known")
    group.add_argument("--thinking-end-token", metavar="TEXT", help="ends reasoning, where it is not known")


def _add_safety(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--api-key-file", metavar="FILE", help="keys that open the server, one a line")
    group.add_argument(
        "--page", action=argparse.BooleanOptionalAction, help="have a chat page for browsers (on loopback only)"
    )
    group.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help="web pages that may ask")
    group.add_argument(
        "--desktop-apps",
        action=argparse.BooleanOptionalAction,
        help="let desktop apps ask, as pages of app:// and such",
    )
    group.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="further host names of ours")
    group.add_argument(
        "--special-tokens-in-content",
        action=argparse.BooleanOptionalAction,
        help="let control tokens in messages take effect",
    )
    group.add_argument(
        "--allow-model-paths", action=argparse.BooleanOptionalAction, help="let clients name models by path"
    )
    group.add_argument(
        "--allow-media-path",
        action="append",
        default=[],
        metavar="DIR",
        help="let clients name images, clips and sound in a folder",
    )
    group.add_argument(
        "--allow-remote-media",
        action=argparse.BooleanOptionalAction,
        help="fetch images, clips and sound from public addresses that clients name",
    )
    group.add_argument(
        "--allow-voice-cloning",
        action=argparse.BooleanOptionalAction,
        help="speak in the voice of a recording that clients send; its speaker must consent",
    )
    group.add_argument(
        "--allow-model-changes", action=argparse.BooleanOptionalAction, help="let clients pull and remove models"
    )


_EXPERIMENTAL = (
    "turboquant, in {} bits, is experimental, and half as fast on a CPU; docs/performance.md has the measurements"
)

_CACHE_BITS_NEEDLESS = "prefix_cache_bits is needless beside kv_bits: what is kept of such prompts is quantized already"


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Run the server until a signal ends it."""
    if arguments.embed_backend and not context.settings.enable_alpha:
        raise FeatureGateError(
            "--embed-backend requires MLXK2_ENABLE_ALPHA_FEATURES=1",
            hint="Set the variable; the flag may still change.",
        )
    server = server_settings(arguments, context)
    server.validate()
    note_backend(server, arguments.hostfile, output)
    option_sets = (server.preferred, *(values for _, values in (*server.entries, *server.model_defaults)))
    if any(values.get("quantize_activations") for values in option_sets):
        context.build(context.settings).adapters.backend_registry().require_quantized_activations()
    if turbo := [{**server.preferred, **values} for values in option_sets if values.get("kv_scheme") == TURBOQUANT]:
        requested = {options.get("kv_bits") for options in turbo}
        used_bits = [bits for bits in TURBOQUANT_BITS if bits in requested] or [TURBOQUANT_USUAL_BITS]
        output.note(f"[{_EXPERIMENTAL.format(' and '.join(f'{bits:g}' for bits in used_bits))}]")
    quantized = [values for values in option_sets if {"kv_bits", "kv_scheme"} & {**server.preferred, **values}.keys()]
    if any("prefix_cache_bits" in values for values in quantized):
        output.note(f"[{_CACHE_BITS_NEEDLESS}]")
    ready = (values["model"] for name, values in server.entries if name in server.ready)
    aliased = (reference for _, reference in server.aliases)
    models = (server.model, server.default_model, arguments.draft_model, *aliased, *ready, *arguments.pin)
    if arguments.pull and not any(models):
        raise UsageError("--pull needs --model", hint="Name the model to fetch; a server fetches none by itself.")
    with suggesting_pull(context.settings):
        fetch_absent(models, lambda: context.build(context.settings), output, pull=arguments.pull)
        if not arguments.background:
            return context.serve(context.settings, server, lambda address: _announcement(address, server, output))
    return _start_background(arguments, context, server, output)


_SOCKET_SECONDS = 30.0
"""How long a ready server may take to answer on its socket, while a model computes for the first time or the machine is
busy."""


def _start_background(
    arguments: argparse.Namespace, context: CommandContext, server: ServerSettings, output: Output
) -> int:
    """Start a server in the background, and print its addresses."""
    if arguments.until_eof:
        raise UsageError("--background and --until-eof exclude each other")
    state = context.settings.state_folder
    log = server_log.make_for_start(state)  # the port's own log may be in use by another server
    typed = [word for word in arguments.typed if word not in ("--background", "--json")]
    try:
        with Spinner(output, "Starting the server"):
            ready = background_server(typed, log)
    except BaseException:
        server_log.keep_failed(log, state)
        raise
    log = server_log.rename(log, state, f"server-{ready['port']}")
    if output.as_json:
        output.document("serve", {**ready, "log": log})
        return DONE
    output.line(f"mlxk serves at {ready['url']}/v1 in the background (process {ready['pid']})")
    for line in _further_addresses(ready["url"], ready["other_urls"], server):
        output.line(line)
    running = context.build(context.settings).adapters.running_servers()
    is_listed = any(each.process == ready["pid"] for each in running.servers(_SOCKET_SECONDS))
    how = "mlxk stop --all" if is_listed else f"kill {ready['pid']}"
    output.line(f"Its log: mlxk logs. Stop it: {how}")
    for fact in running.unseen():
        output.note(f"[{fact}]")
    return DONE


def _further_addresses(url: str, other_urls: Sequence[str], server: ServerSettings) -> tuple[str, ...]:
    """Return the lines that name the page for a browser, and the addresses for other machines."""
    page = f"{url}/" if offers_page(server) else f"{url}/docs"
    return (f"for a browser: {page}", *(f"other machines reach it at {each}/v1" for each in other_urls))


def _announcement(address: ServerAddress, server: ServerSettings, output: Output) -> str:
    """Return the lines with the server's addresses: text, or a JSON document."""
    if not output.as_json:
        lines = _further_addresses(address.url, address.other_urls, server)
        return "\n".join((f"mlxk serves at {address.url}/v1 (Ctrl-C stops it)", *lines))
    data = {
        **_address_json(address),
        "model": server.model,
        "max_tokens": server.max_tokens,
        "pid": os.getpid(),
        **({"page": f"{address.url}/"} if offers_page(server) else {}),
    }
    return success_line("serve", data)


def _address_json(address: ServerAddress) -> dict[str, object]:
    return {
        "url": address.url,
        "other_urls": list(address.other_urls),
        "host": address.host,
        "port": address.port,
    }


_EMBEDDING_PORT = 8001
"""Not the default of ``serve``, so that both can run."""


class EmbedServeCommand:
    """``mlxk embed-serve MODEL``: an embeddings server for one model, usable as ``serve --embed-backend``."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model, the address and the log."""
        add_model_argument(parser)
        parser.add_argument_group("alpha", "It requires MLXK2_ENABLE_ALPHA_FEATURES=1, and may still change.")
        parser.add_argument("--host", metavar="HOST", help="address to listen on (127.0.0.1)")
        parser.add_argument("--port", type=int, metavar="N", help="port to listen on; 0 takes any free one (8001)")
        parser.add_argument("--log-level", type=str.lower, choices=LOG_LEVELS, help="least severe events to log (info)")
        parser.add_argument(
            "--supervisor",
            action=argparse.BooleanOptionalAction,
            help="restart the server when it dies (yes), or serve in this process",
        )
        add_cpu_argument(parser)
        add_pull_argument(parser)

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Run the server until a signal ends it."""
        if not context.settings.enable_alpha:
            raise FeatureGateError(
                "embed-serve requires MLXK2_ENABLE_ALPHA_FEATURES=1",
                hint="Set the variable; the command may still change.",
            )
        server = ServerSettings(
            host=arguments.host or ServerSettings().host,
            port=_EMBEDDING_PORT if arguments.port is None else arguments.port,
            model=arguments.model,
            embed_model=arguments.model,
            log_level=arguments.log_level or context.settings.serve.log_level or "info",
            cpu_dtype=arguments.cpu_dtype or context.settings.cpu_dtype,
            blas=arguments.blas or context.settings.blas,
            log_json=context.settings.log_json,
            file_variables=context.settings.file_variables,
            entries=tuple(context.settings.file.entries.items()),
            supervised=arguments.supervisor is not False,
        )
        server.validate()

        def announcement(address: ServerAddress) -> str:
            if not output.as_json:
                others = "".join(f"\nother machines reach it at {url}/v1/embeddings" for url in address.other_urls)
                return f"mlxk serves vectors at {address.url}/v1/embeddings (Ctrl-C stops it){others}"
            data = {**_address_json(address), "model": arguments.model, "pid": os.getpid()}
            return success_line("embed-serve", data)

        with suggesting_pull(context.settings):
            fetch_absent((arguments.model,), lambda: context.build(context.settings), output, pull=arguments.pull)
            return context.serve(context.settings, server, announcement)
