"""What models use and what it costs, as it crosses the store's border: tokens, dollars, sums of a day."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the model's API counts them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Each by its name."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def tokens(self) -> int:
        """All of them together."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Amount:
    """What a limit counts: tokens of every kind together, and millionths of a US dollar."""

    tokens: int = 0
    microdollars: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.microdollars + other.microdollars)


@dataclass(frozen=True, slots=True)
class Spending:
    """What model calls used and cost, in millionths of a US dollar.

    ``unsettled_tokens`` stand for calls that were cut off: nobody learnt what they really used.
    """

    usage: Usage = Usage()
    microdollars: int = 0
    unsettled_tokens: int = 0

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.usage + other.usage,
            self.microdollars + other.microdollars,
            self.unsettled_tokens + other.unsettled_tokens,
        )

    @property
    def amount(self) -> Amount:
        """What limits count of it."""
        return Amount(self.usage.tokens + self.unsettled_tokens, self.microdollars)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is spent or reserved by others: in the lease's conversation, with its tasks, and on the day.

    ``principal``: by the lease's own on the day; ``day``: by all together.
    """

    conversation: Amount
    principal: Amount
    day: Amount

    def __add__(self, amount: Amount) -> Standing:
        return Standing(self.conversation + amount, self.principal + amount, self.day + amount)


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What was used on one day (``2026-01-31``, UTC): by a conversation, or (None) by all."""

    day: str
    conversation_id: str | None
    runs: int
    spending: Spending
