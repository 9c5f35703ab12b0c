"""Training data: every kind of fault is named by file and line, and what is fine is read as it was meant."""

import gzip
import json

import attrs
import pytest

from mlxk.domain.generation.conversation import Role
from mlxk.domain.tuning.data import FileCheck, TrainingData, across_files, batches, divided, first_faults
from mlxk.domain.tuning.example_lines import MAX_LINE_BYTES
from mlxk.domain.tuning.examples import ExampleKind

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FINE = json.dumps({"messages": [USER, ANSWER]}).encode()


def chat(*messages: object, **more: object) -> bytes:
    """Return a line of messages."""
    return json.dumps({"messages": list(messages), **more}).encode()


def check(*lines: bytes) -> FileCheck:
    """Return what was found in a file."""
    return FileCheck("facts.jsonl").read(line + b"\n" for line in lines)


FAULTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"text": "a"', "is not JSON: expecting ',' delimiter (column 13)"),
    "single quotes": (b"{'text': 'a'}", "is not JSON: expecting property name"),
    "NaN": (b'{"text": "a", "w": NaN}', "NaN is no number of JSON"),
    "two values": (b'{"text": "a"} {"text": "b"}', "has more than one JSON value (column 15)"),
    "carriage returns": (b'{"text": "a"}\r{"text": "b"}', "carriage returns"),
    "no UTF-8": (b'{"text": "K\xf6ln"}', "is not UTF-8 (byte 12 of the line)"),
    "too deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
    "too long a number": (b'{"text": ' + b"1" * 5000 + b"}", "has a number that is too long"),
    "too long": (b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}', "is longer than 16 MiB"),
    "a text": (b'"a"', "is a text, not an object"),
    "a number": (b"7", "is a number, not an object"),
    "null": (b"null", "is null, not an object"),
    "twice": (b'{"text": "a", "text": "b"}', "text: stands twice"),
    "true": (b"true", "is true or false, not an object"),
    "no kind": (b'{"question": "a", "answer": "b"}', "has no messages, no prompt with a completion, and no text"),
    "nothing": (b"{}", "(its fields: none)"),
    "two kinds": (b'{"text": "a", "prompt": "b", "completion": "c"}', "of which kind it is, is not clear"),
    "another kind": (b'{"text": "a"}', "has text, line 1 has messages"),
    "no completion": (b'{"prompt": "a"}', "completion: is missing beside prompt"),
    "no prompt": (b'{"completion": "a"}', "prompt: is missing beside completion"),
    "text no text": (b'{"text": ["a"]}', "text: is a list, not a text"),
    "text empty": (b'{"text": "  "}', "text: is empty"),
    "completion no text": (b'{"prompt": "a", "completion": null}', "completion: is null, not a text"),
    "completion empty": (b'{"prompt": "a", "completion": ""}', "completion: is empty"),
    "half a pair": (b'{"text": "\\ud83d"}', "half a surrogate pair"),
    "half a pair in reasoning": (
        chat(USER, {**ANSWER, "reasoning_content": "\ud83d"}),
        "messages[1].reasoning_content: holds half a surrogate pair",
    ),
    "half a pair in arguments": (
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "\ud83d"}}}]}),
        "messages[1].tool_calls[0].function: holds half a surrogate pair",
    ),
    "half a pair in a tool": (
        chat(USER, ANSWER, tools=[{"function": {"name": "f", "description": "\ud83d"}}]),
        "tools[0]: holds half a surrogate pair",
    ),
    "NUL": (b'{"text": "a\\u0000"}', "holds a NUL character"),
    "half of two answers": (b'{"prompt": "a", "chosen": "b"}', "rejected: is missing beside chosen"),
    "two answers to nothing": (b'{"chosen": "a", "rejected": "b"}', "prompt: is missing beside chosen"),
    "two answers and another": (b'{"text": "a", "chosen": "b", "rejected": "c"}', "stand beside another answer"),
    "the same answer twice": (b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "rejected: is the same as chosen"),
    "a pair of numbers": (b'{"prompt": "a", "chosen": 1, "rejected": 2}', "chosen: is a number, neither a text nor"),
    "a pair of empty answers": (b'{"prompt": "a", "chosen": " ", "rejected": "b"}', "chosen: is empty"),
    "a pair of questions": (
        json.dumps({"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "Other"}, ANSWER]}).encode(),
        "rejected: answers another question than chosen",
    ),
    "a pair of a call": (
        json.dumps({"prompt": "a", "chosen": [ANSWER], "rejected": [{**ANSWER, "tool_calls": [CALL]}]}).encode(),
        "rejected: calls a tool or reasons; only texts are compared",
    ),
    "a pair of a thought": (
        json.dumps({"prompt": "a", "chosen": [ANSWER], "rejected": [{**ANSWER, "reasoning_content": "hm"}]}).encode(),
        "rejected: calls a tool or reasons; only texts are compared",
    ),
    "a pair of messages of which one is wrong": (
        json.dumps({"chosen": [USER, ANSWER], "rejected": [USER, {"role": "bot", "content": "Hello"}]}).encode(),
        "rejected: messages[1].role: is none of",
    ),
    "an image beside text": (b'{"text": "a", "image": "a.png"}', "image: stands beside text"),
    "an image at an address": (
        b'{"prompt": "a", "completion": "b", "images": ["https://a/b.png"]}',
        "images[0]: is an address, and the network is not used",
    ),
    "an image that is no path": (b'{"prompt": "a", "completion": "b", "images": [7]}', "images[0]: is a number"),
    "an image without a name": (b'{"prompt": "a", "completion": "b", "image": ""}', "image: is not the path"),
    "more marks than images": (
        chat({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}, ANSWER),
        "images: there are 0, and 1 in messages that name no file",
    ),
    "an image of the assistant": (
        chat(USER, {"role": "assistant", "content": [{"type": "image", "image": "a.png"}, {"type": "text"}]}),
        "messages[1].content: ",
    ),
    "messages no list": (b'{"messages": {"role": "user"}}', "messages: is an object, not a list"),
    "no messages": (chat(), "messages: is empty"),
    "message no object": (chat("Hi"), "messages[0]: is a text, not an object"),
    "no role": (chat({"content": "Hi"}), "messages[0].role: is missing"),
    "unknown role": (chat({"role": "bot", "content": "Hi"}), "messages[0].role: is none of"),
    "no content": (chat({"role": "user"}, ANSWER), "messages[0].content: is missing"),
    "empty answer": (chat(USER, {"role": "assistant", "content": ""}), "messages[1].content: is empty"),
    "blank answer": (chat(USER, {"role": "assistant", "content": "\n"}), "messages[1].content: is empty"),
    "content no text": (chat({"role": "user", "content": 7}), "messages[0].content: is a number, not a text"),
    "a recording": (chat({"role": "user", "content": [{"type": "input_audio"}]}), "content[0]: is neither text nor"),
    "a kind that is a list": (
        chat({"role": "user", "content": [{"type": ["text"], "text": "x"}]}, ANSWER),
        "messages[0].content[0]: is neither text nor",
    ),
    "a picture of nothing": (
        chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER),
        "messages[0].content[0].image_url: is null, not the path",
    ),
    "late system": (chat(USER, ANSWER, {"role": "system", "content": "x"}), "messages[2].role: a system message"),
    "answer first": (chat(ANSWER), "messages[0].role: the assistant answers before"),
    "two users": (chat(USER, USER, ANSWER), "messages[1].role: two messages of the user"),
    "two answers": (chat(USER, ANSWER, ANSWER), "messages[2].role: two messages of the assistant"),
    "no answer": (chat(USER, ANSWER, USER), "messages[2]: the last message is not the assistant's"),
    "result without call": (chat(USER, {"role": "tool", "content": "x"}), "messages[1].role: a result of a tool"),
    "call by the user": (chat({**USER, "tool_calls": [CALL]}), "messages[0].tool_calls: only the assistant"),
    "calls no list": (chat(USER, {**ANSWER, "tool_calls": "f"}), "messages[1].tool_calls: is a text, not a list"),
    "call without name": (chat(USER, {**ANSWER, "tool_calls": [{"function": {}}]}), "tool_calls[0].function.name"),
    "call without function": (chat(USER, {**ANSWER, "tool_calls": ["f"]}), "tool_calls[0]: has no function"),
    "call without result": (
        chat(USER, {**ANSWER, "tool_calls": [CALL]}, USER, ANSWER),
        "messages[2].role: a call of a tool has no result before it",
    ),
    "result of another call": (
        chat(USER, {**ANSWER, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "b", "content": "x"}, ANSWER),
        "messages[2].role: a result of a tool follows no call that it belongs to",
    ),
    "id no text": (
        chat(USER, {**ANSWER, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": 7, "content": "x"}, ANSWER),
        "messages[2].tool_call_id: is a number, not a text",
    ),
    "reasoning no text": (
        chat(USER, {**ANSWER, "reasoning_content": ["hm"]}),
        "messages[1].reasoning_content: is a list, not a text",
    ),
    "arguments no object": (
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}),
        "tool_calls[0].function.arguments: are a list, not an object",
    ),
    "arguments": (
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}),
        "function.arguments: are not JSON",
    ),
    "arguments too deep": (
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}),
        "function.arguments: are not JSON",
    ),
    "arguments with no number of JSON": (
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": [NaN]}'}}]}),
        "messages[1].tool_calls[0].function.arguments: are not JSON",
    ),
    "arguments with a number beyond all": (
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1e999}'}}]}),
        "messages[1].tool_calls[0].function.arguments: are not JSON",
    ),
    "weights": (chat(USER, {**ANSWER, "weight": 2}), "messages[1].weight: is neither 0 nor 1"),
    "nothing learned": (chat(USER, {**ANSWER, "weight": 0}), "every answer has the weight 0"),
    "tools no list": (chat(USER, ANSWER, tools="f"), "tools: is a text, not a list"),
    "tools": (chat(USER, ANSWER, tools=[{"name": "f"}]), "tools[0]: is no function with a name"),
}


@pytest.mark.parametrize(("line", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_by_its_file_and_line_and_hides_no_later_one(line: bytes, message: str) -> None:
    found = check(FINE, b"", line, b"[]")
    first, last = map(str, found.faults)
    assert first.startswith("facts.jsonl:3: ")
    assert message in first
    assert last == "facts.jsonl:4: is a list, not an object"
    assert [each.line for each in found.examples] == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "facts.jsonl: is empty"),
        (b"\n \n", "facts.jsonl: has blank lines only"),
        ('{"text": "a"}'.encode("utf-16"), "facts.jsonl: is UTF-16"),
        (gzip.compress(b'{"text": "a"}', mtime=0), "facts.jsonl: is gzip"),
        (b"PAR1....", "facts.jsonl: is Parquet"),
        (b'[{"text": "a"}]', "facts.jsonl:1: is a JSON list"),
    ],
)
def test_a_file_of_another_kind_has_one_fault(content: bytes, message: str) -> None:
    found = FileCheck("facts.jsonl").read(content.splitlines(keepends=True))
    assert [message in str(each) for each in found.faults] == [True]


def test_what_is_fine_is_read_as_it_was_meant() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "a", "content": "42"}
    system = {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    found = check(
        b"\xef\xbb\xbf" + FINE,
        chat(system, USER, {**ANSWER, "weight": 0}, USER, call, result, ANSWER, tools=tools) + b"\r",
    )
    assert found.faults == []
    plain, long = found.examples
    assert (plain.kind, plain.answer, plain.learned) == (ExampleKind.CHAT, "Hello", (1,))
    assert long.conversation.messages[0].content == "Be brief."
    assert [each.role for each in long.conversation.messages][4:6] == [Role.ASSISTANT, Role.TOOL]
    assert (long.learned, len(long.conversation.tools), len(long.asked.messages)) == ((4, 6), 1, 6)
    pair = check(b'{"prompt": "a", "completion": "b", "source": "x"}').examples[0]
    assert [each.content for each in pair.conversation.messages] == ["a", "b"]
    assert check(b'{"text": "a"}').examples[0].text == "a"


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hello", "Go away"),
        ([USER], "Hello", "Go away"),
        ("Hi", [ANSWER], [{**ANSWER, "content": "Go away"}]),
        ("Hi", [USER, ANSWER], [USER, {**ANSWER, "content": "Go away"}]),
        ([USER], [USER, ANSWER], [{**ANSWER, "content": "Go away"}]),
        (None, [USER, ANSWER], [USER, {**ANSWER, "content": "Go away"}]),
    ],
)
def test_two_answers_may_repeat_the_question_or_leave_it_to_the_prompt(
    prompt: object, chosen: object, rejected: object
) -> None:
    line = json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    (pair,) = check(line.encode()).examples
    assert [(each.role, each.content) for each in pair.conversation.messages] == [
        (Role.USER, "Hi"),
        (Role.ASSISTANT, "Hello"),
    ]
    assert (pair.kind, pair.learned, pair.rejected) == (ExampleKind.PAIR, (1,), "Go away")


def test_what_may_be_meant_so_is_only_remarked() -> None:
    other = chat(USER, {"role": "assistant", "content": "Good day"}, source="x")
    found = check(FINE, FINE, other, other.replace(b"day", b"day!"))
    assert found.faults == []
    assert found.remarks == [
        "facts.jsonl:2: is the same as line 1",
        "facts.jsonl:3: answers the question of line 1 differently",
        "facts.jsonl:3: source means nothing here",
        "facts.jsonl:4: answers the question of line 1 differently",
    ]


def test_files_are_compared_with_one_another() -> None:
    train = FileCheck("train.jsonl").read([FINE])
    same = FileCheck("valid.jsonl").read([FINE])
    faults, remarks = across_files({"train": train, "valid": same})
    assert (faults, remarks) == ([], ["valid.jsonl:1: is trained as well (train.jsonl:1)"])
    lines = [chat(USER, {**ANSWER, "content": str(number)}) for number in range(7)]
    many = {name: FileCheck(f"{name}.jsonl").read(lines) for name in ("train", "test")}
    assert across_files(many)[1] == [
        *(f"test.jsonl:{line}: is trained as well (train.jsonl:{line})" for line in range(1, 6)),
        "test.jsonl: 2 more examples are trained as well",
    ]
    text = FileCheck("test.jsonl").read([b'{"text": "a"}'])
    faults, _ = across_files({"train": train, "test": text})
    assert list(map(str, faults)) == ["test.jsonl:1: has text, train.jsonl has messages: the files are of one kind"]


def data(count: int) -> TrainingData:
    """Return so many examples."""
    lines = [json.dumps({"text": str(number)}).encode() for number in range(count)]
    return TrainingData(tuple(FileCheck("f").read(lines).examples))


def test_a_tenth_of_many_examples_is_held_out_the_same_for_the_same_seed() -> None:
    made = divided(data(40), None, seed=3)
    assert (len(made.train), len(made.valid), made.divided) == (36, 4, True)
    assert {each.line for each in (*made.train, *made.valid)} == set(range(1, 41))
    assert made == divided(data(40), None, seed=3)
    assert made.valid != divided(data(40), None, seed=4).valid


def test_of_few_examples_none_is_held_out_unless_asked_and_never_all() -> None:
    assert divided(data(19), None, seed=0).valid == ()
    assert len(divided(data(19), 0.01, seed=0).valid) == 1
    assert len(divided(data(3), 0.99, seed=0).train) == 1
    assert divided(data(40), 0.0, seed=0).valid == ()
    own = attrs.evolve(data(40), valid=data(2).train)
    assert divided(own, None, seed=0) == own


def test_every_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    stream = batches(5, 2, seed=1)
    drawn = [next(stream) for _ in range(6)]
    first = [index for epoch, batch in drawn if epoch == 0 for index in batch]
    second = [index for epoch, batch in drawn if epoch == 1 for index in batch]
    assert sorted(first) == sorted(second) == list(range(5))
    assert first != second
    again = batches(5, 2, seed=1)
    assert [next(again) for _ in range(6)] == drawn


def test_many_faults_are_counted() -> None:
    found = check(FINE, *[b"7"] * 5)
    assert first_faults(found.faults, 2)[-1] == "… and 3 more"
