"""One turn of a chat: the completion of a message, printed as it arrives, with calls of tools, and room for it."""

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
    """None where nothing can be asked."""
    toolbox: OfferedTools | None = None
    """The tools of servers; None without any."""

    def complete(self, message: Message) -> bool:
        """Print the completion of a message and keep the turn; after Ctrl-C keep the part that was generated.

        Calls of tools are executed, and the model gets their results, until it calls no more.

        Returns:
            Whether anything was generated.

        Raises:
            MlxkError: A completion failed; what tools have done before it is kept.
        """
        turn, session = [message], self.session
        rounds = ToolRounds(self.toolbox, turn)
        try:
            goes_on = True
            while goes_on:
                answer = self._completion(turn)
                goes_on = answer is not None and rounds.add(answer.text, answer.reasoning, answer.tool_calls)
        except KeyboardInterrupt:
            self.output.note("[stopped]")
        finally:
            if turn[-1].role is Role.TOOL:
                turn.append(Message(Role.ASSISTANT, ""))
            if len(turn) > 1:
                session.keep(*turn)
        return len(turn) > 1

    def again(self, message: Message) -> None:
        """Complete a message in place of the last turn, which stays when nothing is generated."""
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
            ValidationError: There are not so many.
            MlxkError: See ``MakeRoom.summary``; the session is unchanged.
        """
        session = self.session
        groups = turns(session.messages)
        if not 1 <= count <= len(groups):
            raise ValidationError(f"there are {counted(len(groups), 'turn')} to summarize (got {count})")
        with Spinner(self.output, "Summarizing"):
            found = session.room.summary(session.model, groups[:count], session.generation, session.summary)
        if found.cut:
            self.output.note("[a turn is too long; only its beginning is summarized]")
        drop(session, count)
        session.summary = found.text
        self.output.note(found.text)
        self.output.note(f"summarized the {_oldest(count)}, as above; the model gets the summary in place of them")

    def _completion(self, turn: list[Message]) -> CollectedAnswer | None:
        """Print one completion; return None when it was not begun, or was stopped.

        What was generated before it was stopped is added to the turn.
        """
        session = self.session
        reader = AnswerReader(self.output, live=session.live, show_reasoning=session.show_reasoning)
        try:
            activity = "Reading the prompt" if session.answered == session.model else "Loading the model"
            with Spinner(self.output, activity) as spinner:
                stream = self._begun(turn, spinner)
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

    def _begun(self, turn: list[Message], spinner: Spinner) -> TextStream | None:
        """Start a completion; where the context window is too small, ask the user what is to go.

        Returns:
            The stream; None when the user wants neither.

        Raises:
            ContextLengthError: The message does not fit alone, or there is no terminal to ask on.
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
        """Drop or summarize the oldest turns, as the user chooses; return whether one of them was done."""
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
        """Return how many of the oldest turns have to go.

        Raises:
            ContextLengthError: The message does not fit alone.
        """
        session = self.session

        def of(groups: Sequence[Turn]) -> Conversation:
            return attrs.evolve(session, messages=tuple(itertools.chain.from_iterable(groups))).conversation(*turn)

        count = session.room(session.model, turns(session.messages), of, session.generation, error)
        if count is None:
            raise ContextLengthError(
                error.message,
                hint="The message alone does not fit. Shorten it, or go on with another model: /model NAME",
            )
        return count

    def _print_remainder(self, answer: CollectedAnswer) -> None:
        """Print the parts of a completion that were not printed as they arrived."""
        session, output = self.session, self.output
        served = self.toolbox is not None and self.toolbox.answers(answer.tool_calls)
        if not session.live:
            if answer.reasoning and session.show_reasoning:
                output.note(answer.reasoning)
            if answer.text or not answer.tool_calls:
                output.line(answer.text)
        for call in () if served else answer.tool_calls:
            output.line(call_line(call))
        print_notes(output, session.new_notes(answer.finished.notes))
        print_truncation(output, answer.finished, session.settings.max_tokens, chatting=True)
        if session.verbose:
            output.note(f"[{speed(answer.finished)}]")


def usage(session: ChatSession) -> str:
    """Return how much of the context window the conversation takes, for people."""
    try:
        conversation = session.conversation()
        used, size = session.room.count(session.model, conversation, session.generation, opens_answer=False)
    except MlxkError as error:
        return f"not known ({error.message})" if session.messages else "empty"
    if size is None:
        return f"{counted(used, 'token')} of a window of unknown size"
    return f"{used} of {counted(size, 'token')} ({100 * used // size} %)"


def drop(session: ChatSession, count: int) -> str:
    """Take the oldest turns out of what the model gets, and return a sentence about it.

    Raises:
        ValidationError: There are not so many.
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
