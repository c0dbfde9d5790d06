"""One reply of the model, however often it has to be asked: again, with less to read, another model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import anyio

from host.agent.endings import Ending, ModelFailed, Refused, TooLong
from host.agent.media import Media, Read, nothing_kept
from host.agent.window import Window
from host.ports import Delta, Message, Model, ModelError, Reply, ToolResult
from shared.usage_values import Usage
from shared.values import Block

RETRIES: Final = 4
"""How often a failed step is tried again, within the run's time."""

FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 20.0

OVERLOADED: Final = frozenset({429, 503, 529})
"""Statuses after which, once the retries are used up, another model may do better."""

ThinkingType = Literal["auto", "adaptive", "enabled"]

ADAPTIVE_SINCE: Final = (4, 6)
"""Claude models of this version take ``adaptive``, and sooner or later nothing else: the SDK warns of
``enabled`` for 4.6, and models from 4.7 on refuse it. Older ones know only ``enabled``."""

LEAST_THINKING: Final = 1024
"""Fewest thinking tokens the Messages API takes."""

_VERSION: Final = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_UNNUMBERED: Final = ("claude-mythos-preview",)


class Recorder(Protocol):
    """Who hears what one agent of a run does: tells the readers, stores the steps, keeps the accounts."""

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for words and has read none."""

    async def reserve(
        self, request: dict[str, Any], models: Sequence[str], input_tokens: int | None = None
    ) -> dict[str, Any]:
        """Return the request with a ``max_tokens`` that can be afforded on any of these models.

        ``input_tokens``: an estimate of the request on the high side, if there is one already. Raises the
        ending of a run that would pass a budget.
        """

    def delta(self, delta: Delta) -> None:
        """A piece of the reply in flight."""

    def heard(self, delta: Delta) -> None:
        """A piece of a reply that nobody reads."""

    async def retrying(self) -> None:
        """The reply in flight failed; it begins anew."""

    async def replied(self, reply: Reply, *, final: bool, effect_ahead: bool = False) -> None:
        """A whole reply: the last one, or one whose tools (with effects: ``effect_ahead``) run next."""

    async def unused(self, reply: Reply) -> None:
        """A reply that is asked for anew, or that people don't see: it costs."""

    async def given_up(self) -> None:
        """A reply was given up for what it may have cost."""

    async def cut_short(self, reply: Reply) -> Exception:
        """A reply that ``reserve`` left no room to finish; it costs, but is not kept. Returns the ending."""

    async def called(self, call: Block, result: ToolResult, *, speaks: bool) -> None:
        """A tool answered; see ``ToolSpec.speaks``."""

    async def answered(self, results: Sequence[Block]) -> None:
        """All tools of the reply answered."""

    def child(self, label: str) -> Recorder:
        """Return who hears what a subagent does; ``label`` is its name among those of the run."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a run asks of the model. ``must_call``: the first reply calls one of these tools.

    ``one_call``: a reply has at most one call. ``stop``: texts at which a reply ends.
    """

    max_tokens: int
    max_iterations: int
    system: Sequence[Block]
    thinking_tokens: int | None = None
    thinking_type: ThinkingType = "auto"
    must_call: frozenset[str] = frozenset()
    one_call: bool = False
    stop: Sequence[str] = ()
    kept: Read = nothing_kept


@dataclass(slots=True)
class Asking:
    """Asks for the replies of one agent.

    The first of ``models`` answers; once it stays overloaded the next one does, to the end of the run.
    """

    models: Sequence[Model]
    tools: list[Mapping[str, Any]]
    recorder: Recorder
    options: Options
    window: Window
    granted: int = field(default=0, init=False)
    """``max_tokens`` of the newest request."""
    media: Media | None = field(default=None, init=False)

    def offer(self, tools: list[Mapping[str, Any]]) -> None:
        """Offer these tools from now on."""
        if tools != self.tools:
            self.tools = tools
            self.window.prefix = None

    async def reply(self, messages: list[Message]) -> Reply:
        """Return the next reply, which may be sent back. The messages may be shortened. Raises Ending."""
        mended: set[str] = set()
        while True:
            reply = await self._attempt(messages, mended)
            if reply is not None:
                if self.options.must_call:
                    self.options = replace(self.options, must_call=frozenset())
                if reply.blocks and "thinking" in reply.blocks[-1]["type"]:
                    return replace(reply, blocks=_sendable(reply.blocks))
                return reply

    async def _attempt(self, messages: list[Message], mended: set[str]) -> Reply | None:
        """Return the reply, None if the messages or the model were changed for another attempt."""
        model = self.models[0]
        bare = self._bare(model)
        sizes = await self.window.fit(messages, bare, model)
        request = {**bare, "max_tokens": sizes.output, "messages": with_breakpoints(messages)}
        request = await self.recorder.reserve(request, model.ids, sizes.estimate)
        self.granted = request["max_tokens"]
        if self.window.media:
            documents = all(is_anthropics(target.address) for target in model.targets)
            self.media = self.media or Media(self.options.kept)
            request["messages"] = await self.media.sent(request["messages"], documents=documents)
        try:
            reply = await self._tries(model, within_output(request) if "thinking" in request else request)
        except ModelError as error:
            await self._recover(error, messages, bare, mended)
            return None
        if reply.stop_reason == "model_context_window_exceeded" and "too_long" not in mended:
            return await self._overflowed(reply, messages, bare, mended)
        if reply.stop_reason == "refusal":
            await self.recorder.unused(reply)
            raise Refused("The model declined to answer this. It isn't sent again: go on with a new message.")
        if reply.stop_reason == "max_tokens" and self.granted < sizes.output:
            # It is no answer; the step is asked for anew once the run may go on.
            raise await self.recorder.cut_short(reply)
        if reply.left_out:
            await self.window.mended(messages, reply.left_out)
        self.window.windows.learn(sizes.estimate, reply)
        return reply

    async def _recover(
        self, error: ModelError, messages: list[Message], bare: dict[str, Any], mended: set[str]
    ) -> None:
        """Change the messages if that is what the API wants, once for each reason, or take the next model."""
        model, *others = self.models
        if error.reason not in mended:
            mended.add(error.reason)
            try:
                again = await self.window.refused(messages, bare, model, error)
            except TooLong as ending:
                raise TooLong(f"{ending.message} {error.sentence}") from error
            if again:
                await self.recorder.retrying()
                return
        if error.status not in OVERLOADED or not others:
            raise _failed(error) from error
        self.models = others
        await self.recorder.retrying()

    async def _overflowed(
        self, reply: Reply, messages: list[Message], bare: dict[str, Any], mended: set[str]
    ) -> Reply | None:
        """Make room after a reply that the window's end cut off, once; a second one counts as it is.

        So does the first, with its usage counted here, where there is nothing to leave out.
        """
        mended.add("too_long")
        await self.recorder.unused(reply)
        try:
            await self.window.shorten(messages, bare, self.models[0], anyway=True)
        except TooLong:
            return replace(reply, usage=Usage())
        await self.recorder.retrying()
        return None

    async def _tries(self, model: Model, request: dict[str, Any]) -> Reply:
        for attempt in range(RETRIES):
            try:
                return await model.reply(request, self.recorder.delta)
            except ModelError as error:
                pause = _pause(attempt, error.retry_after_s)
                if not error.retryable or self._another_is_sooner(error) or _outlasts_the_run(pause):
                    raise
                await self.recorder.retrying()
                await anyio.sleep(pause)
        return await model.reply(request, self.recorder.delta)

    def _another_is_sooner(self, error: ModelError) -> bool:
        overloaded = error.status in OVERLOADED and len(self.models) > 1
        return overloaded and (error.retry_after_s or 0.0) > LONGEST_BACKOFF_S

    def _bare(self, model: Model) -> dict[str, Any]:
        """Return the request without its messages."""
        options = self.options
        request: dict[str, Any] = {"max_tokens": options.max_tokens, "system": list(options.system)}
        # A forced call and thinking exclude each other:
        # https://platform.claude.com/docs/en/build-with-claude/extended-thinking
        named = options.must_call
        forced = [tool for tool in self.tools if tool["name"] in named] if named else []
        if self.tools:
            request["tools"] = forced or self.tools
        if forced or (self.tools and options.one_call):
            alone = {"disable_parallel_tool_use": True} if options.one_call else {}
            request["tool_choice"] = {"type": "any" if forced else "auto", **alone}
        if options.stop:
            request["stop_sequences"] = list(options.stop)
        if options.thinking_tokens is not None and not forced:
            request["thinking"] = thinking_parameter(
                model.ids[0], options.thinking_type, options.thinking_tokens
            )
        return request


def is_anthropics(address: str) -> bool:
    """Return whether an API is Anthropic's own."""
    return not address or f".{urlsplit(address).hostname}".endswith(".anthropic.com")


def thinking_parameter(model: str, kind: ThinkingType, budget: int) -> dict[str, Any]:
    """Return the ``thinking`` parameter of a request to the model; ``budget`` is in tokens.

    ``auto`` goes by the version in the model's id; a model that is not a Claude gets a budget.
    """
    if kind == "adaptive" or (kind == "auto" and takes_adaptive(model)):
        # Newer models leave the text out unless asked for it.
        return {"type": "adaptive", "display": "summarized"}
    return {"type": "enabled", "budget_tokens": budget}


def within_output(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request with a thinking budget below ``max_tokens``, none if there is too little room."""
    thinking = request.get("thinking") or {}
    if thinking.get("budget_tokens", 0) < request["max_tokens"]:
        return request
    budget = request["max_tokens"] // 2
    made = {**request, "thinking": {**thinking, "budget_tokens": budget}}
    if budget < LEAST_THINKING:
        del made["thinking"]
    return made


def takes_adaptive(model: str) -> bool:
    """Return whether the model decides by itself how much it thinks."""
    if any(name in model for name in _UNNUMBERED):
        return True
    found = _VERSION.search(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) >= ADAPTIVE_SINCE


def with_breakpoints(messages: Sequence[Message]) -> list[Message]:
    """Mark the last two user messages as cache breakpoints, on copies: stored blocks stay byte-stable.

    The last one is what the next step reads; the one before is what this step reads.
    """
    marked = list(messages)
    left = 2
    for index in range(len(marked) - 1, -1, -1):
        if marked[index]["role"] == "user":
            *rest, last = marked[index]["content"]
            content = [*rest, {**last, "cache_control": {"type": "ephemeral"}}]
            marked[index] = {"role": "user", "content": content}
            left -= 1
        if not left:
            break
    return marked


def _pause(attempt: int, retry_after_s: float | None) -> float:
    if retry_after_s is not None:
        return max(retry_after_s, 0.0)
    return min(FIRST_BACKOFF_S * (1 << attempt), LONGEST_BACKOFF_S)


def _outlasts_the_run(pause: float) -> bool:
    """Return whether a run that waits so many seconds would end without its reason, as timed out."""
    return anyio.current_time() + pause >= anyio.current_effective_deadline()


def _sendable(blocks: list[Block]) -> list[Block]:
    """Return the blocks without thinking at their end, which the API doesn't take back there."""
    end = len(blocks)
    while end and "thinking" in blocks[end - 1]["type"]:
        end -= 1
    return blocks[:end]


def _failed(error: ModelError) -> Ending:
    return TooLong(error.sentence) if error.reason == "too_long" else ModelFailed(error.sentence)
