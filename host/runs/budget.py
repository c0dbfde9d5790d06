"""What a run may still spend: reserved in the store before each model call, or the run pauses and asks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import anyio

from host.agent.endings import Paused
from host.agent.window import estimated_input
from host.runs.meter import FREE, AgentMeter, Ledger
from shared.approval_values import NewApproval
from shared.clock import now_ms
from shared.errors import Misconfigured
from shared.ids import APPROVAL, new_id
from shared.settings.sections import Budgets, Limit, Price
from shared.usage_values import Amount, Standing
from shared.values import Lease

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
class _Call:
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
            rooms.append(math.floor(left / self.price.output) if self.price.output else self._enough(left))
        return min(rooms)

    def amount(self, output: int) -> Amount:
        """Return what to reserve for the call with so much output."""
        cost = self.input_tokens * self.price.input + output * self.price.output
        return Amount(self.input_tokens + output, math.ceil(cost))

    def _enough(self, left: float) -> int:
        return self.most_output if left >= 0 else -1


class RunBudget:
    """Limits what one agent of a run uses.

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
        self._budgets = ledger.prices.budgets
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

    def _call(self, request: dict[str, Any], models: Sequence[str], input_tokens: int | None) -> _Call:
        most = request["max_tokens"]
        thinking = request.get("thinking", {}).get("budget_tokens", 0)
        call = _Call(
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
        in_dollars = self._budgets.in_dollars() or self._own.in_dollars()
        if price is None and self._allowed is None and in_dollars:
            raise Misconfigured(
                f"A budget in dollars is set, but budgets.prices has no price for {' or '.join(models)}."
            )
        return price or FREE

    def _granted(self, call: _Call, standing: Standing, own: Amount) -> int:
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
        yield _Scope("The limit for one run is", self._budgets.run, own + earlier)
        yield _Scope("The limit for one conversation is", self._budgets.conversation, standing.conversation)
        yield _Scope("The limit for one day is", self._budgets.day, standing.day)
        yield _Scope("This principal's limit for one run is", self._own.run, own + earlier)
        of_conversation = "This principal's limit for one conversation is"
        yield _Scope(of_conversation, self._own.conversation, standing.conversation)
        yield _Scope("This principal's limit for one day is", self._own.day, standing.principal)

    def _paused(self, why: str) -> Paused:
        conversation_id = self._lease.conversation_id
        wish = {"allow_tokens": self._suggested}
        said = (
            f"I have paused. {why} To let me go on, approve more tokens: "
            f'POST /chat/{conversation_id}/resume {{"allow_tokens": {self._suggested}}}'
        )
        return Paused(said, [NewApproval(new_id(APPROVAL), "budget", "", wish, reason=why, life_ms=None)])


def _sentence(scope: _Scope, call: _Call) -> str:
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
