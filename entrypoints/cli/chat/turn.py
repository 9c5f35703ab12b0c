"""One turn of a chat: completes a message, prints the answer, executes tool calls, and makes room in the context."""

import itertools
from collections.abc import Sequence
from typing import Protocol

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import ContextLengthError, MlxkError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role, Turn, turns
from mlxk.entrypoints.cli.answer import AnswerReader, CollectedAnswer, call_line, print_notes, print_truncation, speed
from mlxk.entrypoints.cli.chat.session import ChatSession
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render.formatting import counted
from mlxk.entrypoints.cli.tool_calls import OfferedTools, ToolRounds


class Chooser(Protocol):
    """Asks a question at the terminal."""

    def choose(self, question: str) -> str:
        """Return the answer in lower case; empty for none."""


@attrs.define
class TurnPrinter:
    """Completes turns and prints them."""

    session: ChatSession
    output: Output
    chooser: Chooser | None
    """None where no question can be asked."""
    toolbox: OfferedTools | None = None
    """None without tool servers."""

    def complete(self, message: Message) -> bool:
        """Print the completion of a message, and add the turn to the session; after Ctrl-C, the part generated so far.

        While the model calls tools, their results are followed by another completion.

        Returns:
            Whether anything was generated.

        Raises:
            MlxkError: A completion failed; tool calls before it and their results stay in the session.
        """
        turn, session = [message], self.session
        rounds = ToolRounds(self.toolbox, turn)
        try:
            has_results = True
            while has_results:
                answer = self._completion(turn)
                has_results = answer is not None and rounds.add(answer.text, answer.reasoning, answer.tool_calls)
        except KeyboardInterrupt:
            self.output.note("[stopped]")
        finally:
            if turn[-1].role is Role.TOOL:
                turn.append(Message(Role.ASSISTANT, ""))
            if len(turn) > 1:
                session.keep(*turn)
        return len(turn) > 1

    def again(self, message: Message) -> None:
        """Replace the last turn by a message and its completion; the turn stays when nothing is generated."""
        session = self.session
        before, answered = (session.messages, session.earlier, session.summary), False
        session.messages = session.messages[: -len(session.last_turn)]
        try:
            answered = self.complete(message)
        finally:
            if not answered:
                session.messages, session.earlier, session.summary = before

    def summarize(self, count: int) -> None:
        """Have the model summarize the oldest turns.

        Raises:
            ValidationError: There are fewer turns.
            MlxkError: See ``MakeRoom.summary``; the session is unchanged.
        """
        session = self.session
        groups = turns(session.messages)
        if not 1 <= count <= len(groups):
            raise ValidationError(f"there are {counted(len(groups), 'turn')} to summarize (got {count})")
        with Spinner(self.output, "Summarizing"):
            summary = session.room.summary(session.model, groups[:count], session.generation, session.summary)
        if summary.cut:
            self.output.note("[a turn is too long; only its beginning is summarized]")
        drop(session, count)
        session.summary = summary.text
        self.output.note(summary.text)
        self.output.note(f"summarized the {_oldest(count)}, as above; the model gets the summary in place of them")

    def _completion(self, turn: list[Message]) -> CollectedAnswer | None:
        """Print one completion; return None when it was not started, or was stopped by Ctrl-C.

        The part that a stopped completion has generated is added to the turn.
        """
        session = self.session
        reader = AnswerReader(self.output, live=session.live, show_reasoning=session.show_reasoning)
        try:
            activity = "Reading the prompt" if session.answered == session.model else "Loading the model"
            with Spinner(self.output, activity) as spinner:
                stream = self._start(turn, spinner)
                spinner.stop()
            if stream is None:
                return None
            with stream:
                answer = reader.read(stream)
        except KeyboardInterrupt:
            self.output.line("" if session.live else "".join(reader.text))
            self.output.note("[stopped]")
            if reader.text:
                session.answered = session.model
                turn.append(Message(Role.ASSISTANT, "".join(reader.text), reasoning="".join(reader.reasoning)))
            return None
        session.count(answer.finished)
        self._print_remainder(answer)
        return answer

    def _start(self, turn: list[Message], spinner: Spinner) -> TextStream | None:
        """Start a completion; where it exceeds the context window, ask the user how to make room.

        Returns:
            The stream; None when the user does not want to make room.

        Raises:
            ContextLengthError: The message alone does not fit, or there is no terminal to ask on.
        """
        while True:
            try:
                return self.session.ask(*turn)
            except ContextLengthError as error:
                spinner.stop()
                if self.chooser is None:
                    raise
                if not self._make_room(error, turn, self.chooser):
                    return None

    def _make_room(self, error: ContextLengthError, turn: list[Message], chooser: Chooser) -> bool:
        """Drop or summarize the oldest turns, as the user chooses; return False for neither."""
        count = self._turns_in_excess(error, turn)
        self.output.note(error.message)
        oldest = f"the {count} oldest of {counted(len(turns(self.session.messages)), 'turn')}"
        choice = chooser.choose(f"Make room: (d)rop {oldest}, (s)ummarize them, or leave the message? [d/s/N]: ")
        if choice in ("d", "drop"):
            self.output.note(drop(self.session, count))
        elif choice in ("s", "summarize", "summarise"):
            self.summarize(count)
        else:
            self.output.note("the message is not sent; /drop, /summarize and /clear make room")
            return False
        return True

    def _turns_in_excess(self, error: ContextLengthError, turn: list[Message]) -> int:
        """Return how many of the oldest turns must be removed for a turn to fit.

        Raises:
            ContextLengthError: The message alone does not fit.
        """
        session = self.session

        def conversation_of(groups: Sequence[Turn]) -> Conversation:
            return attrs.evolve(session, messages=tuple(itertools.chain.from_iterable(groups))).conversation(*turn)

        count = session.room(session.model, turns(session.messages), conversation_of, session.generation, error)
        if count is None:
            raise ContextLengthError(
                error.message,
                hint="The message alone does not fit. Shorten it, or go on with another model: /model NAME",
            )
        return count

    def _print_remainder(self, answer: CollectedAnswer) -> None:
        """Print the parts of a completion that were not printed as they arrived."""
        session, output = self.session, self.output
        executed = self.toolbox is not None and self.toolbox.answers(answer.tool_calls)
        if not session.live:
            if answer.reasoning and session.show_reasoning:
                output.note(answer.reasoning)
            if answer.text or not answer.tool_calls:
                output.line(answer.text)
        for call in () if executed else answer.tool_calls:
            output.line(call_line(call))
        print_notes(output, session.new_notes(answer.finished.notes))
        print_truncation(output, answer.finished, session.settings.max_tokens, chatting=True)
        if session.verbose:
            output.note(f"[{speed(answer.finished)}]")


def usage(session: ChatSession) -> str:
    """Describe how much of the context window the conversation takes."""
    try:
        conversation = session.conversation()
        used, size = session.room.count(session.model, conversation, session.generation, opens_answer=False)
    except MlxkError as error:
        return f"not known ({error.message})" if session.messages else "empty"
    if size is None:
        return f"{counted(used, 'token')} of a window of unknown size"
    return f"{used} of {counted(size, 'token')} ({100 * used // size} %)"


def drop(session: ChatSession, count: int) -> str:
    """Remove the oldest turns from the model's context, keep them for the transcript, and return a confirmation.

    Raises:
        ValidationError: There are fewer turns.
    """
    groups = turns(session.messages)
    if not 1 <= count <= len(groups):
        raise ValidationError(f"the model has {counted(len(groups), 'turn')} to drop (got {count})")
    dropped = tuple(itertools.chain.from_iterable(groups[:count]))
    session.earlier = (*session.earlier, *dropped)
    session.messages = session.messages[len(dropped) :]
    return f"dropped the {_oldest(count)}; the model knows {counted(len(groups) - count, 'turn')} before this one"


def _oldest(count: int) -> str:
    return "oldest turn" if count == 1 else f"{count} oldest turns"
