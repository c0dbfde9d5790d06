"""What a run's model calls use, whichever of its agents makes them; and the budget that bounds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from host.agent.endings import Paused
from host.agent.window import estimated_input, estimated_text
from host.ports import Delta, Reply, TextDelta, ThinkingDelta
from host.telemetry import Metrics
from shared.approval_values import NewApproval
from shared.clock import now_ms
from shared.errors import Misconfigured
from shared.ids import APPROVAL, new_id
from shared.principals import OPERATOR
from shared.redact import Redactor
from shared.settings.sections import Budgets, Limit, Price
from shared.store.store import Store
from shared.usage_values import Amount, Spending, Standing, Usage
from shared.values import Lease

FREE: Final = Price(input=0.0, output=0.0)


class Prices:
    """The prices of the settings by model id; ``free``: nothing costs anything."""

    def __init__(self, budgets: Budgets, *, free: bool = False) -> None:
        self.budgets = budgets
        self.limited = budgets.limited
        self._free = free

    def cost(self, usage: Usage, *names: str) -> int:
        """Return what the usage cost in millionths of a dollar, by the first name that has a price."""
        if self._free or not self.budgets.prices:
            return 0
        price = next((price for name in names if (price := self.of(name)) is not None), FREE)
        read, write = price.cache_read, price.cache_write
        return math.ceil(
            usage.input_tokens * price.input
            + usage.output_tokens * price.output
            + usage.cache_read_input_tokens * (price.input if read is None else read)
            + usage.cache_creation_input_tokens * (price.input if write is None else write)
        )

    def of(self, model: str) -> Price | None:
        """Return the model's price, None if it has none."""
        return FREE if self._free else self.budgets.price_of(model)

    def dearest(self, models: Iterable[str]) -> Price | None:
        """Return a price that none of the models exceeds, None if one of them has none."""
        prices = [self.of(model) for model in models]
        known = [price for price in prices if price is not None]
        if not known or len(known) < len(prices):
            return None
        return Price(
            input=max(max(price.input, price.cache_write or 0.0) for price in known),
            output=max(price.output for price in known),
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where runs are written down: the store, what takes secrets out before, prices and counters."""

    store: Store
    redactor: Redactor
    prices: Prices
    counts: Metrics


NOTHING: Final = Spending()


@dataclass(slots=True)
class _Call:
    """A model call in flight: its input, what was reserved for it, how much of the reply has been heard."""

    input_tokens: int
    price: Price
    reserved: Amount
    told: int = 0

    def estimate(self) -> Spending:
        output = estimated_text(self.told)
        cost = self.input_tokens * self.price.input + output * self.price.output
        return Spending(microdollars=math.ceil(cost), unsettled_tokens=self.input_tokens + output)


@dataclass(slots=True, eq=False)
class RunMeter:
    """The sums of one run. ``uncounted`` is the part of ``spent`` that is not stored yet."""

    prices: Prices
    agents: list[AgentMeter] = field(default_factory=list)
    spent: Spending = NOTHING
    uncounted: Spending = NOTHING

    def in_flight(self, *, but: AgentMeter) -> Amount:
        """Return what is reserved for the calls of the run's other agents."""
        total = Amount()
        for agent in self.agents:
            if agent is not but and agent.call is not None:
                total += agent.call.reserved
        return total

    def spend(self, spending: Spending) -> None:
        """Add what was spent."""
        self.spent += spending
        self.uncounted += spending

    def stored(self) -> None:
        """What was spent so far is in the store now."""
        self.uncounted = NOTHING

    async def settle(self) -> None:
        """At the end of the run: count calls that were given up for what they may have used."""
        for agent in self.agents:
            if agent.call is not None:
                await agent.given_up()


class AgentMeter:
    """What one agent of a run uses, and may use; it makes one call at a time.

    ``model`` is the one that answered last, ``budget`` None if nothing limits it.
    """

    budget: RunBudget | None = None

    def __init__(self, meter: RunMeter) -> None:
        self.meter = meter
        self.call: _Call | None = None
        self.model = ""
        meter.agents.append(self)

    def begin(self, input_tokens: int, price: Price | None, reserved: Amount) -> None:
        """A call begins whose outcome has to be accounted for, about so large."""
        self.call = _Call(input_tokens, price or FREE, reserved)

    def heard(self, delta: Delta) -> None:
        """Count a piece of the reply in flight."""
        if self.call is not None and isinstance(delta, TextDelta | ThinkingDelta):
            self.call.told += len(delta.text)

    async def unused(self, reply: Reply) -> None:
        """Count the usage of a reply, with which the call ended."""
        self.call = None
        self.model = reply.model
        asked = reply.asked.model if reply.asked else ""
        cost = self.meter.prices.cost(reply.usage, reply.model, asked)
        self.meter.spend(Spending(reply.usage, cost))

    async def reserve(
        self, request: dict[str, Any], models: Sequence[str], input_tokens: int | None = None
    ) -> dict[str, Any]:
        """See ``Recorder.reserve``."""
        if self.budget is None:
            return request
        return await self.budget.reserve(request, models, input_tokens)

    async def cut_short(self, reply: Reply) -> Paused:
        """Count the usage of a reply that is not kept."""
        await self.unused(reply)
        if self.budget is None:
            raise RuntimeError("only a budget cuts a reply short")
        return self.budget.cut_short()

    async def given_up(self) -> None:
        """Count a call that was given up for what it may have used."""
        call, self.call = self.call, None
        if call is not None:
            self.meter.spend(call.estimate())


LEAST_OUTPUT: Final = 256
"""Tokens below which a reply is not worth its input, unless ``max_tokens`` is smaller anyway."""

MICRO: Final = 1_000_000
ROUND_TO: Final = 1000


@dataclass(frozen=True, slots=True)
class _Scope:
    """One limit, and what counts against it so far."""

    name: str
    limit: Limit
    spent: Amount


@dataclass(frozen=True, slots=True)
class _NextCall:
    """The next call: what it needs at least, what it would like to have."""

    input_tokens: int
    least_output: int
    most_output: int
    price: Price

    def output_within(self, scope: _Scope) -> int:
        """Return the output tokens that the scope leaves room for; negative when there is none."""
        rooms = [self.most_output]
        if scope.limit.tokens is not None:
            rooms.append(scope.limit.tokens - scope.spent.tokens - self.input_tokens)
        if scope.limit.dollars is not None:
            left = scope.limit.dollars * MICRO - scope.spent.microdollars
            left -= self.input_tokens * self.price.input
            free = self.most_output if left >= 0 else -1
            rooms.append(math.floor(left / self.price.output) if self.price.output else free)
        return min(rooms)

    def amount(self, output: int) -> Amount:
        """Return what to reserve for the call with so much output."""
        cost = self.input_tokens * self.price.input + output * self.price.output
        return Amount(self.input_tokens + output, math.ceil(cost))


class RunBudget:
    """Limits what one agent of a run uses: reserved in the store before a call, or the run pauses and asks.

    ``own``: the principal's limits beside the host's. ``allowed``: tokens that people approved for this run;
    the limits don't stop it within them.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        meter: AgentMeter,
        own: Mapping[str, Any],
        allowed: int | None = None,
    ) -> None:
        self._own = Budgets.model_validate(own)
        self._prices = ledger.prices
        self._store = ledger.store
        self._lease = lease
        self._meter = meter
        self._reserving = anyio.Lock()
        self._allowed = allowed
        self._suggested = 0

    async def reserve(
        self, request: dict[str, Any], models: Sequence[str], input_tokens: int | None = None
    ) -> dict[str, Any]:
        """See ``Recorder.reserve``; raises Misconfigured for a limit in dollars if a model has no price."""
        call = self._call(request, models, input_tokens)
        granted = 0

        def decide(others: Standing) -> Amount:
            nonlocal granted
            granted = self._granted(call, others + unstored, own)
            return call.amount(granted) + unstored

        async with self._reserving:
            run = self._meter.meter
            in_flight = run.in_flight(but=self._meter)
            own = run.spent.amount + in_flight
            # The run's row holds one amount: what all its agents' calls need, and what they used unstored.
            unstored = run.uncounted.amount + in_flight
            await self._store.runs.reserve(self._lease, decide, now_ms())
            self._meter.begin(call.input_tokens, call.price, call.amount(granted))
        return {**request, "max_tokens": granted}

    def shared_with(self, meter: AgentMeter) -> RunBudget:
        """Return the same budget for another agent of the run."""
        other = copy(self)
        other._meter = meter
        return other

    def cut_short(self) -> Paused:
        """Return the ending of a run whose last reply was cut short by that ``max_tokens``."""
        return self._paused("What is left of the budget was not enough to finish the reply.")

    def _call(self, request: dict[str, Any], models: Sequence[str], input_tokens: int | None) -> _NextCall:
        most = request["max_tokens"]
        thinking = request.get("thinking", {}).get("budget_tokens", 0)
        call = _NextCall(
            input_tokens=estimated_input(request) if input_tokens is None else input_tokens,
            least_output=min(thinking + LEAST_OUTPUT, most),
            most_output=most,
            price=self._price(models),
        )
        wanted = call.input_tokens + most
        self._suggested = -(-wanted // ROUND_TO) * ROUND_TO
        return call

    def _price(self, models: Sequence[str]) -> Price:
        price = self._prices.dearest(models)
        in_dollars = self._prices.budgets.in_dollars() or self._own.in_dollars()
        if price is None and self._allowed is None and in_dollars:
            raise Misconfigured(
                f"A budget in dollars is set, but budgets.prices has no price for {' or '.join(models)}."
            )
        return price or FREE

    def _granted(self, call: _NextCall, standing: Standing, own: Amount) -> int:
        granted = call.most_output
        for scope in self._scopes(standing, own):
            output = call.output_within(scope)
            if output < call.least_output:
                raise self._paused(_sentence(scope, call))
            granted = min(granted, output)
        return granted

    def _scopes(self, standing: Standing, own: Amount) -> Iterator[_Scope]:
        if self._allowed is not None:
            yield _Scope("What was approved for this run is", Limit(tokens=self._allowed), own)
            return
        earlier = self._lease.chain.spent
        yield _Scope("The limit for one run is", self._prices.budgets.run, own + earlier)
        yield _Scope(
            "The limit for one conversation is", self._prices.budgets.conversation, standing.conversation
        )
        yield _Scope("The limit for one day is", self._prices.budgets.day, standing.day)
        yield _Scope("This principal's limit for one run is", self._own.run, own + earlier)
        of_conversation = "This principal's limit for one conversation is"
        yield _Scope(of_conversation, self._own.conversation, standing.conversation)
        yield _Scope("This principal's limit for one day is", self._own.day, standing.principal)

    def _paused(self, why: str) -> Paused:
        conversation_id = self._lease.conversation_id
        wish = {"allow_tokens": self._suggested}
        own = self._lease.principal_id == OPERATOR
        who = "approve" if own else "the operator has to approve"
        said = (
            f"I have paused. {why} To let me go on, {who} more tokens: "
            f'POST /chat/{conversation_id}/resume {{"allow_tokens": {self._suggested}}}'
        )
        return Paused(said, [NewApproval(new_id(APPROVAL), "budget", "", wish, reason=why, life_ms=None)])


def _sentence(scope: _Scope, call: _NextCall) -> str:
    need = call.amount(call.least_output)
    tokens, dollars = scope.limit.tokens, scope.limit.dollars
    if tokens is not None and scope.spent.tokens + need.tokens > tokens:
        return (
            f"{scope.name} {tokens:,} tokens: {scope.spent.tokens:,} are used, "
            f"and the next step needs at least {need.tokens:,}."
        )
    spent, needed = scope.spent.microdollars / MICRO, need.microdollars / MICRO
    return (
        f"{scope.name} ${dollars:.2f}: ${spent:.4f} is used, and the next step needs at least ${needed:.4f}."
    )
