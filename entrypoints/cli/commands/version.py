"""``mlxk --version``: of the program, of the JSON API, and what it runs on."""

import argparse
import platform

from mlxk import __version__
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output

JSON_API_SPEC_VERSION = "0.3.0"


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the version."""
    if not output.as_json:
        output.line(f"mlxk {__version__}")
        return DONE
    reading = context.build(context.settings).adapters.memory_probe().read()
    output.document(
        "version",
        {
            "cli_version": __version__,
            "json_api_spec_version": JSON_API_SPEC_VERSION,
            "system": {
                "memory_total_bytes": reading.total if reading else None,
                "platform": f"{platform.system()}-{platform.machine()}",
                "python": platform.python_version(),
            },
        },
    )
    return DONE
