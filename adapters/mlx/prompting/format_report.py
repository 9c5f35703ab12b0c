"""What a model's chat template and tokenizer were found to do, tried out. Answers do not depend on it.

Conversations of every kind are rendered, as requests would be, and a call that the template writes is read by the
parser that reads the model's own.
"""

import json
from collections.abc import Mapping, Sequence

from mlxk.adapters.mlx.prompting.conversation_rendering import ConversationRenderer, RenderingJob
from mlxk.adapters.mlx.prompting.repair_steps import CALLS_AS_TEXT
from mlxk.adapters.mlx.prompting.template_switches import effort_levels, switch_names
from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.adapters.mlx.prompting.wire_messages import wire_prompt
from mlxk.application.ports.model_tokenizer import CallSample, EndToken, FittedConversation, FormatReport
from mlxk.domain.errors import MlxkError
from mlxk.domain.formats.call_syntaxes import CallSyntax, detect_syntaxes
from mlxk.domain.formats.format_problems import CALL_UNREAD, NO_TEMPLATE
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import ReasoningFormat
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.request import ToolCallDelta

_ARGUMENTS = {"city": "Köln", "days": 3}
_NAME = "get_weather"
_TOOL = json.dumps(
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where."},
                    "days": {"type": "integer", "description": "How many."},
                },
                "required": ["city"],
            },
        },
    }
)


def _call(identity: str) -> ToolCall:
    return ToolCall(_NAME, json.dumps(_ARGUMENTS, ensure_ascii=False), identity)


def _user(text: str = "Hello") -> Message:
    return Message(Role.USER, text)


def _system(text: str) -> Message:
    return Message(Role.SYSTEM, text)


_ANSWER = Message(Role.ASSISTANT, "Good day")
# The ids that Kimi's templates write in place of the name; others do not mind.
_FIRST, _SECOND = f"functions.{_NAME}:0", f"functions.{_NAME}:1"
_CALLING = Message(Role.ASSISTANT, "", tool_calls=(_call(_FIRST),))
_CALLING_TWICE = Message(Role.ASSISTANT, "", tool_calls=(_call(_FIRST), _call(_SECOND)))
_RESULTS = tuple(Message(Role.TOOL, "Sunny", tool_call_id=each) for each in (_FIRST, _SECOND))

_CONVERSATIONS: Mapping[str, Conversation] = {
    "one message": Conversation((_user(),)),
    "several turns": Conversation((_user(), _ANSWER, _user("And now?"))),
    "system prompt": Conversation((_system("Be brief."), _user())),
    "several system messages": Conversation((_system("Be brief."), _system("Be kind."), _user())),
    "late system message": Conversation((_user(), _ANSWER, _system("Be brief."), _user("And now?"))),
    "turns of one role": Conversation((_user(), _user("And now?"))),
    "assistant first": Conversation((_ANSWER, _user())),
    "tools": Conversation((_user(),), (_TOOL,)),
    "tool call and result": Conversation((_user(), _CALLING, _RESULTS[0]), (_TOOL,)),
    "calls in one message": Conversation((_user(), _CALLING_TWICE, *_RESULTS), (_TOOL,)),
}
_GREETING = "one message"


def format_report(
    renderer: PromptRenderer,
    holder: ConversationRenderer,
    vocabulary: Mapping[str, int],
    named: Mapping[str, list[int]],
) -> FormatReport:
    """Return what was found.

    Args:
        renderer: Of the model.
        holder: Has the template that conversations are rendered with.
        vocabulary: Every token, added ones included.
        named: The end-of-sequence tokens by the file that names them, the one that counts first.
    """
    reasoning, syntaxes = renderer.reasoning, detect_syntaxes(renderer.template, vocabulary)
    problems: list[str] = []
    fitted: tuple[FittedConversation, ...] = ()
    sample, reads_tools = None, False
    if holder.has_template:
        fitted = _fitted(holder)
        reads_tools = holder.reads_tools
        problems += [f"{each.kind}: {each.refusal}" for each in fitted if each.refusal is not None]
        if fitted[0].refusal is None:
            sample = _sample(holder, reasoning, syntaxes) if reads_tools else None
            problems += _call_problems(reads_tools=reads_tools, sample=sample)
    else:
        problems.append(NO_TEMPLATE)
    ends = _ends(renderer, vocabulary, named)
    if not ends:
        problems.append("No token is known that ends a turn: answers end at the limit of tokens only.")
    return FormatReport(
        chat_template=holder.has_template,
        reasoning=(reasoning.start, reasoning.end) if reasoning is not None else None,
        call_syntaxes=tuple(dict.fromkeys(each.name for each in syntaxes)),
        reads_tools=reads_tools,
        switches=switch_names(holder.template),
        effort_levels=effort_levels(holder.template),
        ends=ends,
        control_tokens=renderer.control.texts,
        conversations=fitted,
        call=sample,
        problems=tuple(problems),
    )


def _fitted(holder: ConversationRenderer) -> tuple[FittedConversation, ...]:
    found = []
    for kind, conversation in _CONVERSATIONS.items():
        try:
            made = holder.render(wire_prompt(conversation), RenderingJob())
            steps = (*made.forms, *(each.code for each in made.adaptations))
            found.append(FittedConversation(kind, tuple(dict.fromkeys(steps))))
        except MlxkError as error:
            found.append(FittedConversation(kind, (), error.message))
            if kind == _GREETING:
                break
    return tuple(found)


def _sample(
    holder: ConversationRenderer, reasoning: ReasoningFormat | None, syntaxes: Sequence[CallSyntax]
) -> CallSample | None:
    """Return a call as the template writes it, and whether it is read; None where the template cannot write one."""
    asked = Conversation((_user(),), (_TOOL,))
    called = Conversation((_user(), _CALLING), (_TOOL,))
    try:
        before = holder.render(wire_prompt(asked), RenderingJob()).text
        rendered = holder.render(wire_prompt(called), RenderingJob(opens_answer=False))
    except MlxkError:
        return None
    if any(each.code == CALLS_AS_TEXT.code for each in rendered.adaptations):
        return None
    after = rendered.text
    length = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), None)
    length = min(len(before), len(after)) if length is None else length
    written = after[length:]
    parser = OutputParser((), reasoning, ToolCallFormat(tuple(syntaxes), Tools((_TOOL,))), before[:length])
    deltas = [*parser.feed(written), *parser.flush()]
    calls = [each.call for each in deltas if isinstance(each, ToolCallDelta)]
    read = [(each.name, json.loads(each.arguments)) for each in calls]
    return CallSample(written, read == [(_NAME, _ARGUMENTS)])


def _call_problems(*, reads_tools: bool, sample: CallSample | None) -> list[str]:
    if not reads_tools:
        return []
    if sample is None:
        return ["The chat template reads tools, but writes no calls: earlier ones are written as text."]
    return [] if sample.read else [CALL_UNREAD]


def _ends(
    renderer: PromptRenderer,
    vocabulary: Mapping[str, int],
    named: Mapping[str, list[int]],
) -> tuple[EndToken, ...]:
    by_template = renderer.turn_ends
    counting = next(filter(None, named.values()), [])
    texts = {index: text for text, index in vocabulary.items()}
    sources = {**named, "template": sorted(by_template)}
    return tuple(
        EndToken(token, texts.get(token, ""), tuple(name for name, tokens in sources.items() if token in tokens))
        for token in sorted({*counting, *by_template})
    )
