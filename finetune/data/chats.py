"""A chat → what the model is asked and what it shall say. Knows chat templates; knows no models and no files.

A template may write a turn otherwise once others follow (Qwen3 drops its reasoning, Phi-3 moves the end of
the text), so that no turn is looked for in the whole chat: each is rendered as the model is asked for it, the
chat up to it with a generation prompt, and as it stands there once it was said. Turns that stand in a later
one's text word for word share its row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune.data.chat_contents import REASONING, left_out, names_gone, plain, present, reasoning_of, shapes
from finetune.errors import InputError
from finetune.templating import FAULTS, render_chat

Message = dict[str, Any]
THINKING = "enable_thinking"  # the name that all families with a choice have for it
OPENED, CLOSED = "<think>", "</think>"
UNLEARNT = ("weight", "train")  # a message's own word on whether it is learnt; no template reads them
PROBE = "zq7"  # stands for what somebody says; no template writes it


class ChatError(InputError):
    """A chat that its template can't say; the message doesn't know which row it is."""


@dataclass(frozen=True)
class Turn:
    """One answer: `prompt` is what the model is asked, `said` what it shall answer, `spans` its learnt
    characters.

    `told` is what the template had to be told for the answer to follow its prompt, as JSON; empty where that
    is nothing. `marked` says that the spans are those between its {% generation %} marks.
    """

    prompt: str
    said: str
    spans: tuple[tuple[int, int], ...] = ()
    told: str = ""
    marked: bool = False


@dataclass
class Line:
    """Tokens of a chat, or of a part of it, and which of them are learnt; `prompt` tokens stand before the
    last answer.

    `apart` says that prompt and answer were tokenised apart, since together they would meet inside a token.
    """

    ids: list[int]
    learnt: list[bool]
    prompt: int
    told: str
    apart: bool
    marked: bool = False


@dataclass
class Chats:
    """A tokenizer's chat template at work.

    Attributes:
        options: what the template is told besides (`enable_thinking`, `reasoning_effort`, ...).
    """

    processor: PreTrainedTokenizerBase
    options: Mapping[str, Any] = field(default_factory=dict)
    _headers: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def prompt(self, messages: Sequence[Message], tools: Any = None) -> str:
        """The text that a model is given to answer a chat, with the template's generation prompt.

        Raises:
            ChatError: the template refuses it, or leaves out a part of it.
        """
        reasons: list[tuple[int, str]] = []
        for shaped in shapes([stripped(message) for message in messages]):
            try:
                text, _ = self._render(shaped, as_tools(tools), True, {})
            except FAULTS as error:
                reasons.append((0, self._refused(shaped, error)))  # 0 refused, 1 came further but lost a part
                continue
            gone = left_out(shaped, text) or self._unread(shaped, shaped, as_tools(tools))
            if gone is None:
                return text
            reasons.append((1, f"The chat template does not render {gone}"))
        raise ChatError(f"{max(reasons, key=lambda one: one[0])[1]}. {MEND}")

    def prompt_ids(self, messages: Sequence[Message], tools: Any = None) -> list[int]:
        """`prompt`, tokenised: its special tokens are the template's own, none is added."""
        return self.processor(self.prompt(messages, tools), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]

    def lines(self, messages: Sequence[Message], tools: Any = None) -> list[Line]:
        """A chat as lines of tokens in which each answer that is to be learnt stands as the model will be
        asked for it.

        The last line holds the last answer. Prompt and answer are tokenised together where the prompt's own
        tokens stay as they are, else apart: that is how a model meets them.

        Raises:
            ChatError: the template refuses the chat, or leaves out a part of it.
        """
        found: list[Line] = []
        for line in reversed([self._line(turn) for turn in self.turns(messages, tools)]):
            size = len(line.ids)
            host = next((other for other in found if other.ids[:size] == line.ids), None)
            if host is None:  # the template rewrites this turn later on: it needs a row of its own
                found.append(line)
            else:
                host.learnt[:size] = [a or b for a, b in zip(line.learnt, host.learnt[:size], strict=True)]
        return found[::-1]

    def line(self, messages: Sequence[Message], tools: Any = None) -> Line:
        """A chat from beginning to end, all of it learnt; `prompt` tokens stand before its last answer."""
        last = self.lines(messages, tools)[-1:]
        ids = self.processor(self.whole(messages, tools), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return Line(ids, [True] * len(ids), last[0].prompt if last else len(ids), "", apart=False)

    def whole(self, messages: Sequence[Message], tools: Any = None) -> str:
        """A chat as its template writes it, from beginning to end; accounted for as in `turns`."""
        shaped, _ = self._settled(messages, as_tools(tools))
        return self._render(shaped, as_tools(tools), False, {})[0]

    def turns(self, messages: Sequence[Message], tools: Any = None) -> list[Turn]:
        """Each answer of a chat that is to be learnt: all of the assistant's, but those of weight 0.

        Raises:
            ChatError: the template refuses the chat, or leaves out a part of it.
        """
        _, found = self._settled(messages, as_tools(tools))
        return [turn for place, turn in found.items() if is_learnt(messages[place])]

    def _settled(self, messages: Sequence[Message], tools: Any) -> tuple[list[Message], dict[int, Turn]]:
        """A chat in the first shape of which its template leaves nothing out, and its answers by place.

        Templates differ in what they take: arguments of calls as a mapping or as JSON, contents as a text or
        as parts.
        """
        reasons: list[tuple[int, str]] = []
        for shaped in shapes([stripped(message) for message in messages]):
            try:
                answers = [place for place, message in enumerate(shaped) if message["role"] == "assistant"]
                turns = {place: self._turn(shaped, place, tools) for place in answers}
                gone = self._gone(shaped, turns, tools)
                if gone is None:
                    return shaped, turns
                reasons.append((1 if "content" in gone else 2, f"The chat template does not render {gone}"))
            except ChatError as error:
                reasons.append((2, str(error)))
            except FAULTS as error:
                reasons.append((0, self._refused(shaped, error)))  # 0 refused, 1 a content lost, 2 further
        # of several shapes that failed, the one that came furthest tells most
        raise ChatError(f"{max(reasons, key=lambda one: one[0])[1]}. {MEND}")

    def _gone(self, messages: list[Message], turns: Mapping[int, Turn], tools: Any) -> str | None:
        """What the template leaves out of a chat, in words."""
        for place, turn in turns.items():
            gone = left_out(messages[: place + 1], turn.prompt, turn.said)
            if gone is not None:
                return gone
        last = max(turns, default=len(messages))  # behind it nothing is rendered
        return self._unread(messages[: max(turns, default=0)] or messages, messages[: last + 1], tools)

    def _unread(self, asked: list[Message], messages: list[Message], tools: Any) -> str | None:
        """Tools and names that change nothing in the text of what is asked, or of a chat."""

        def text(said: list[Message], given: Any = tools) -> str:
            return self._render(said, given, False, {})[0]

        lost = tools is not None and text(asked) == text(asked, None)
        return "the column 'tools'" if lost else names_gone(messages, text)

    def _refused(self, messages: list[Message], error: Exception) -> str:
        roles = ", ".join(message["role"] for message in messages)
        reason = str(error).strip().rstrip(".") or type(error).__name__
        return f"The chat template refuses messages of {roles}: {reason}"

    def _turn(self, messages: list[Message], place: int, tools: Any) -> Turn:
        """The answer at a place, as it is asked for."""
        for told in self._thinking():
            text, marks = self._render(messages[: place + 1], tools, False, told)
            prompt = self._asked(messages[:place], tools, told, text)
            if prompt is not None and text.startswith(prompt):  # only then will the model be asked for it so
                turn = Turn(prompt, text[len(prompt) :], told=json.dumps(told) if told else "")
                return self._ended(messages, place, turn, marks)
        return self._closed(messages, place, tools)

    def _thinking(self) -> Iterator[dict[str, Any]]:
        """What the template is told of thinking: nothing; either, where a turn doesn't follow its prompt."""
        yield {}  # first: a template that needs no telling is told nothing
        if THINKING in self.template(None) and THINKING not in self.options:
            yield {THINKING: False}  # a user's own setting stands, by the test above
            yield {THINKING: True}

    def _asked(self, before: list[Message], tools: Any, told: dict[str, Any], text: str) -> str | None:
        """What the model is asked after some messages.

        Nobody asks for a greeting: where nothing stands before it, its prompt is all up to its header's end.
        """
        try:
            prompt = self._render(before, tools, True, told)[0]
            if text.startswith(prompt) or any(message["role"] == "user" for message in before):
                return prompt
        except FAULTS:
            if any(message["role"] == "user" for message in before):
                raise
        header = self._header(json.dumps(told))
        for begun in (header, header.rstrip().removesuffix(OPENED)):
            start = text.find(begun) if begun else -1
            if start >= 0:
                return text[:start] + header
        return None

    def _header(self, told: str) -> str:
        """What a generation prompt adds to a question."""
        if told not in self._headers:
            asked: list[Message] = [{"role": "user", "content": PROBE}]
            self._headers[told] = ""  # set first: a template that refuses the probe is asked once
            try:
                opened, closed = (
                    self._render(asked, None, prompt, json.loads(told))[0] for prompt in (True, False)
                )
            except FAULTS:
                return ""
            if opened.startswith(closed):  # else it rewrites the question, and no addition can be named
                self._headers[told] = opened.removeprefix(closed)
        return self._headers[told]

    def _closed(self, messages: list[Message], place: int, tools: Any) -> Turn:
        """An answer whose prompt opens a thinking block that the template doesn't write back (DeepSeek R1 and
        V3).

        The model is asked with it open, so that the answer begins inside: its reasoning, the end of the
            block, what is said.
        """
        text, _ = self._render(messages[: place + 1], tools, False, {})  # the block is left out here
        prompt = self._asked(messages[:place], tools, {}, text)
        bare = prompt.rstrip().removesuffix(OPENED) if prompt is not None else ""
        if prompt is None or not prompt.rstrip().endswith(OPENED) or not text.startswith(bare):
            raise ChatError(
                f"The chat template writes the answer of message {place} otherwise than behind its own "
                "generation prompt"
            )
        reasoning = reasoning_of(messages[place])
        said = "\n".join([reasoning, CLOSED, "", text[len(bare) :].lstrip("\n")])
        return self._ended(messages, place, Turn(prompt, said), [])

    def _ended(
        self, messages: list[Message], place: int, turn: Turn, marks: Sequence[tuple[int, int]]
    ) -> Turn:
        """The turn with the token that ends it and its learnt spans: {% generation %} marks, or all."""
        start, said = len(turn.prompt), turn.said.rstrip()
        inside = [(max(a - start, 0), b - start) for a, b in marks if b > start]
        if marks and not inside:  # nothing of the answer would be learnt
            raise ChatError(
                f"The chat template's {{% generation %}} marks leave out the answer of message {place}"
            )
        said = turn.said[: max(len(said), *(b for _, b in inside))] if inside else said
        spans = inside or [(0, len(said))]
        if not self._ends_itself:
            role = messages[place + 1]["role"] if place + 1 < len(messages) else None
            following = self._following(role or ("tool" if messages[place].get("tool_calls") else "user"))
            spans.append((len(said), len(said) + len(following)))
            said += following
        return Turn(turn.prompt, said, tuple(spans), turn.told, bool(inside))

    @cached_property
    def _ends_itself(self) -> bool:
        """Whether the template ends an answer; GLM-4.5 leaves it to the next message's header."""
        for shaped in shapes([{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}]):
            try:
                text = self._render(shaped, None, False, {})[0].rstrip()
            except FAULTS:
                continue
            if PROBE in text:  # the first shape that renders the answer tells
                return not text.endswith(PROBE)
        return True

    def _following(self, role: str) -> str:
        """What ends an answer that its template leaves open: the next message's first token, or the end's."""
        asked: list[Message] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}]
        for shaped in shapes([*asked, {"role": role, "content": "y", "name": "y", "tool_call_id": "y"}]):
            try:
                rest = self._render(shaped, None, False, {})[0].partition(PROBE)[2]
            except FAULTS:
                continue
            known = [str(token) for token in self.processor.added_tokens_decoder.values()]
            begun = [token for token in known if rest.lstrip().startswith(token)]
            if begun:  # the longest, since one token may begin another
                return rest[: len(rest) - len(rest.lstrip())] + max(begun, key=len)
        return self.processor.eos_token or ""

    def _line(self, turn: Turn) -> Line:
        """A turn's tokens up to the last that is learnt."""
        texts, processor = (turn.prompt, turn.prompt + turn.said), self.processor
        exact = bool(processor.is_fast)  # slow tokenizers know no offsets
        encoded = processor(
            list(texts), add_special_tokens=False, return_offsets_mapping=exact, verbose=False
        )
        front, whole = encoded["input_ids"]
        if exact and whole[: len(front)] == front:  # the border falls between tokens
            start, said = len(turn.prompt), whole[len(front) :]
            offsets = [(a - start, b - start) for a, b in encoded["offset_mapping"][1][len(front) :]]
        else:
            alone = processor(
                [turn.said], add_special_tokens=False, return_offsets_mapping=exact, verbose=False
            )
            said = alone["input_ids"][0]  # as generation goes on from the prompt's own tokens
            offsets = alone["offset_mapping"][0] if exact else [(0, len(turn.said))] * len(said)
        learnt = in_spans(offsets, turn.spans)
        size = max((place for place, one in enumerate(learnt) if one), default=-1) + 1
        ids, mask = [*front, *said[:size]], [False] * len(front) + learnt[:size]
        apart = whole[: len(front)] != front
        return Line(ids, mask, len(front), turn.told, apart, turn.marked)

    def template(self, tools: Any) -> str:
        """The template's source; some tokenizers have another one for chats with tools."""
        return self.processor.get_chat_template(tools=tools)

    def _render(
        self, messages: Sequence[Message], tools: Any, prompt: bool, told: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        """A chat's text, and the characters between {% generation %} marks; what `apply_chat_template` does
        before it tokenises."""
        variables = {**self.processor.special_tokens_map, **self.options, **told}
        variables |= {
            "messages": list(messages),
            "tools": tools,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        return render_chat(self.template(tools), variables)


def template_ids(processor: Any, messages: Sequence[Message], tools: Any = None, asked: bool = False) -> Any:
    """A chat's ids just as `apply_chat_template` gives them, which TRL trains on; nothing is checked."""
    return processor.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=asked, tokenize=True, return_dict=True
    )["input_ids"]


MEND = "Set --chat_template_path to a template that does, or mend the rows"


def is_learnt(message: Message) -> bool:
    """Whether a message is an answer that nothing keeps from being learnt."""
    return message["role"] == "assistant" and all(message.get(name) not in (0, False) for name in UNLEARNT)


def stripped(message: Message) -> Message:
    """A message as `apply_chat_template` shows it to a template, without keys that hold nothing and what only
    training reads.

    Reasoning goes by the names that families have for it.
    """
    made = plain(
        {name: present(one) for name, one in message.items() if name not in UNLEARNT and one is not None}
    )
    reasoning = next((made[name] for name in REASONING if made.get(name) is not None), None)
    return made if reasoning is None else {"thinking": reasoning, **made, "reasoning_content": reasoning}


def as_tools(given: Any) -> list[dict] | None:
    """Descriptions of tools as JSON schemas: a list, or the JSON of one; columns of structs hold every key of
    any row.

    Raises:
        ChatError: neither.
    """
    try:
        tools = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError as error:
        raise ChatError(
            f"The column 'tools' holds {given[:80]!r}, which is no JSON ({error}). Mend the rows"
        ) from error
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ChatError(
            f"The column 'tools' holds {str(given)[:80]!r}; wanted a list of JSON schemas. Mend the rows"
        )
    return tools if isinstance(given, str) else [present(tool) for tool in tools]


def in_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token ends inside one of the spans of characters."""
    return [end > start and any(a < end <= b for a, b in spans) for start, end in offsets]
