"""What fine-tuning costs where it is paid for, and who allows it before it is spent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_lab.errors import CourseError

BYTES_PER_TOKEN = 4  # of English text; a rule of thumb


class BudgetError(CourseError):
    """Nobody has allowed this to be paid for. Nothing was spent."""


@dataclass(frozen=True)
class Prices:
    """Dollars per 1,000 tokens. A server that costs nothing has `Prices(0, 0)`."""

    training: float
    inference: float


@dataclass(frozen=True)
class Estimate:
    """What something would cost."""

    what: str
    tokens: int
    dollars: float

    def __str__(self) -> str:
        return f"{self.what}: {self.tokens:,} tokens, about ${self.dollars:.2f}"


def by_rule_of_thumb(text: str) -> int:
    """Tokens of a text, roughly."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def training_cost(
    examples: Sequence[tuple[str, str]], epochs: int, prices: Prices, count_tokens: Callable[[str], int]
) -> Estimate:
    """Of `epochs` passes over (prompt, completion) pairs; prompts are paid for as completions are."""
    tokens = epochs * sum(count_tokens(prompt) + count_tokens(completion) for prompt, completion in examples)
    return Estimate(f"training on {len(examples):,} examples, {epochs} x", tokens, tokens * prices.training / 1000)


@dataclass(frozen=True)
class Purse:
    """What may be spent: up to `budget` dollars in all; or what `confirm` says yes to; or, with both, what passes
    both."""

    prices: Prices | None
    budget: float | None
    confirm: Callable[[Estimate], bool] | None

    def approve(self, estimate: Estimate, spent: float) -> None:
        """Raises BudgetError, one sentence, unless this may be spent after the dollars that are `spent` already."""
        if estimate.dollars and self.budget is None and self.confirm is None:
            raise BudgetError(f"Nothing is spent unasked ({estimate}): pass `budget`, in dollars, or `confirm`.")
        if self.budget is not None and spent + estimate.dollars > self.budget:
            raise BudgetError(
                f"{estimate}, and ${spent:.2f} are spent already, which is more than the budget of "
                f"${self.budget:.2f}: do less, or raise `budget`."
            )
        if self.confirm is not None and not self.confirm(estimate):
            raise BudgetError(f"Not confirmed, so not done ({estimate}).")

    def known_prices(self) -> Prices:
        """Raises BudgetError where nobody has said them."""
        if self.prices is None:
            raise BudgetError(
                "This server may cost money, so say what: pass `prices`, in dollars per 1,000 tokens (Prices(0, 0) if "
                "it is free)."
            )
        return self.prices
