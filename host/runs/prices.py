"""What tokens cost. US dollars per million tokens are millionths of a dollar per token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from shared.models import Usage
from shared.settings.sections import Price

FREE: Final = Price(input=0.0, output=0.0)


class Prices:
    """The prices of the settings by model id. A price also holds for the dated ids of its model."""

    def __init__(self, prices: Mapping[str, Price], *, free: bool = False) -> None:
        self._prices = dict(prices)
        self._free = free

    def cost(self, usage: Usage, *names: str) -> int:
        """Return what the usage cost in millionths of a dollar, by the first name that has a price."""
        price = next((price for name in names if (price := self.of(name)) is not None), FREE)
        return math.ceil(
            usage.input_tokens * price.input
            + usage.output_tokens * price.output
            + usage.cache_read_input_tokens * price.cache_read
            + usage.cache_creation_input_tokens * price.cache_write
        )

    def of(self, model: str) -> Price | None:
        """Return the model's price, None if it has none."""
        if self._free:
            return FREE
        found = self._prices.get(model)
        if found is not None:
            return found
        known = [name for name in self._prices if model.startswith(f"{name}-")]
        return self._prices[max(known, key=len)] if known else None

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
