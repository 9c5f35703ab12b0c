"""What ``show --format-report`` prints, as text and as JSON."""

from mlxk.application.ports.model_tokenizer import EndToken, FittedConversation, FormatReport
from mlxk.entrypoints.cli.render.formatting import printable
from mlxk.entrypoints.cli.render.model_json import Json

_MOST_NAMED = 8
"""Control tokens named to people."""


def report_json(report: FormatReport) -> Json:
    """Return the ``format_report`` of ``show``."""
    reasoning, call = report.reasoning, report.call
    return {
        "chat_template": report.chat_template,
        "reasoning": {"start": reasoning[0], "end": reasoning[1]} if reasoning is not None else None,
        "call_syntaxes": list(report.call_syntaxes),
        "reads_tools": report.reads_tools,
        "call": {"text": call.text, "read": call.read} if call is not None else None,
        "switches": list(report.switches),
        "effort_levels": list(report.effort_levels),
        "ends": [{"token": each.token, "text": each.text, "sources": list(each.sources)} for each in report.ends],
        "control_tokens": list(report.control_tokens),
        "conversations": [
            {"kind": each.kind, "steps": list(each.steps), "refusal": each.refusal} for each in report.conversations
        ],
        "problems": list(report.problems),
    }


def report_text(report: FormatReport) -> str:
    """Return the lines of ``show --format-report`` below the model's summary."""
    reasoning, call, tokens = report.reasoning, report.call, report.control_tokens
    named = ", ".join(tokens[:_MOST_NAMED]) + (", …" if len(tokens) > _MOST_NAMED else "")
    facts = {
        "Chat template": "yes" if report.chat_template else "no",
        "Reasoning": f"{reasoning[0]} … {reasoning[1]}" if reasoning is not None else "not marked",
        "Switches": ", ".join(report.switches) or "none",
        "Effort levels": ", ".join(report.effort_levels) or "none",
        "Tools": "read by the template" if report.reads_tools else "not read by the template",
        "Call syntaxes": ", ".join(report.call_syntaxes) or "none of its own",
        "Calls parsed": "not tried" if call is None else "yes" if call.read else "no",
        "Turns end with": "; ".join(map(_end, report.ends)) or "unknown",
        "Control tokens": f"{len(tokens)}, kept as text where messages spell them: {named}" if tokens else "none",
    }
    lines = ["", "Formats:", *(f"  {name}: {value}" for name, value in facts.items())]
    if call is not None:
        lines += ["", "A call as the template writes it:", *(f"  {line}" for line in call.text.strip().split("\n"))]
    if report.conversations:
        lines += ["", "Conversations:", *map(_conversation, report.conversations)]
    lines += ["", "Problems:", *(f"  {problem}" for problem in report.problems or ("none",))]
    return "\n".join(map(printable, lines)) + "\n"


def _end(end: EndToken) -> str:
    return f"{end.text or end.token} ({', '.join(end.sources)})"


def _conversation(each: FittedConversation) -> str:
    if each.refusal is not None:
        return f"  {each.kind}: refused"
    return f"  {each.kind}: {', '.join(each.steps) or 'as it is'}"
