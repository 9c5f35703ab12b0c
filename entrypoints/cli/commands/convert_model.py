"""``mlxk convert SOURCE TARGET``: quantize, dequantize, or repair the index of a model, into a new workspace."""

import argparse

from mlxk.application.use_cases.convert_model import ConvertMode, ConvertRequest
from mlxk.domain.errors import InterruptedRunError, UsageError
from mlxk.entrypoints.cli.command import CommandContext, complete_models, model_reference
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import SpinnerBetweenBars
from mlxk.entrypoints.cli.render import operations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare source, target and mode."""
    source = parser.add_argument("source", metavar="SOURCE", type=model_reference, help="a model; it is only read")
    complete_models(source)
    parser.add_argument("target", metavar="TARGET", help="a directory that does not exist, or a bare name in the home")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quantize", metavar="BITS", type=int, help="bits per weight: 2, 3, 4, 6 or 8")
    mode.add_argument("--dequantize", action="store_true", help="back to full precision")
    mode.add_argument("--repair-index", action="store_true", help="write a new index of the weight files present")
    parser.add_argument("--q-group-size", metavar="N", type=int, help="weights that share a scale: 32, 64 or 128 (64)")
    parser.add_argument("--skip-health", action="store_true", help="keep the result even if it fails the health check")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Convert the model and print where the result is; progress goes to standard error."""
    if arguments.quantize is not None:
        mode = ConvertMode.QUANTIZE
    elif arguments.dequantize:
        mode = ConvertMode.DEQUANTIZE
    elif arguments.repair_index:
        mode = ConvertMode.REPAIR_INDEX
    else:
        raise UsageError("Must specify conversion mode (--repair-index, --quantize N or --dequantize)")
    convert = context.build(context.settings).use_cases.convert_model()
    request = ConvertRequest(
        arguments.source,
        arguments.target,
        mode,
        bits=arguments.quantize,
        group_size=arguments.q_group_size,
        check_health=not arguments.skip_health,
    )
    try:
        with SpinnerBetweenBars(output, "Reading the model") as progress:
            result = convert(request, progress)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; nothing was made", hint="Run the same command again.") from None
    if output.as_json:
        output.document("convert", operations.convert_json(result))
        return DONE
    if result.warning:
        output.note(f"Warning: {result.warning}")
    output.text(operations.convert_text(result))
    return DONE
