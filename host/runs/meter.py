"""What a run's model calls use, whichever of its agents makes them: counted ones, and those in flight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from host.agent.window import estimated_text
from host.ports import Delta, Reply, TextDelta, ThinkingDelta
from host.telemetry import Metrics
from shared.redact import Redactor
from shared.settings.sections import Budgets, Price
from shared.store.store import Store
from shared.usage_values import Amount, Spending, Usage

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
        return math.ceil(
            usage.input_tokens * price.input
            + usage.output_tokens * price.output
            + usage.cache_read_input_tokens * price.cache_read
            + usage.cache_creation_input_tokens * price.cache_write
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
            input=max(max(price.input, price.cache_write) for price in known),
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


class RunMeter:
    """The sums of one run. ``uncounted`` is the part of ``spent`` that is not stored yet."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.agents: list[AgentMeter] = []
        self.spent = self.uncounted = NOTHING

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
    """What one agent of a run uses; it makes one call at a time. ``model`` is the one that answered last."""

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

    async def given_up(self) -> None:
        """Count a call that was given up for what it may have used."""
        call, self.call = self.call, None
        if call is not None:
            self.meter.spend(call.estimate())
