"""Simulated labelers: they see the gold rewards through taste, noise and bias, and say which response they prefer.

A labeler's utility of a response is its gold rewards weighted by taste, plus `length_bias` points a word. Between two
responses the labeler chooses by the Bradley-Terry model (Bradley and Terry 1952) on the difference of utilities;
Davidson's extension (1970) adds ties. With `intransitivity` short answers lose to medium ones, medium to long ones and
long to short ones: a cycle that no reward, gold or learned, can express.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rlhf_lab.tinyhh import gold
from rlhf_lab.tinyhh.knowledge import sentences


class Comparison(NamedTuple):
    """The probabilities of one labeler's three verdicts; they sum to one."""

    first: float
    second: float
    tie: float


@dataclass(frozen=True)
class Annotator:
    """One labeler. Utilities are in gold points, `position_bias` and the argument of the sigmoid in log-odds."""

    skill: float = 1.5  # log-odds per point of utility: how well the labeler sees the difference
    helpfulness: float = 1.0  # taste: the weight of each gold reward
    harmlessness: float = 0.0
    honesty: float = 0.0  # zero by default: a labeler cannot tell a false tip from a true one
    length_bias: float = 0.0  # points of utility per word
    position_bias: float = 0.0  # log-odds in favor of the response shown first
    tie_propensity: float = 0.0  # Davidson's nu: 0 never ties
    intransitivity: float = 0.0  # log-odds of the cycle short < medium < long < short

    def utility(self, prompt: str, response: str) -> float:
        """What the response is worth to this labeler, in points."""
        value = self.length_bias * len(response.split())
        for weight, reward in (
            (self.helpfulness, gold.helpfulness),
            (self.harmlessness, gold.harmlessness),
            (self.honesty, gold.honesty),
        ):
            if weight:
                value += weight * reward(prompt, response)
        return value

    def log_odds(self, prompt: str, first: str, second: str) -> float:
        """log P(first preferred) / P(second preferred)."""
        difference = self.utility(prompt, first) - self.utility(prompt, second)
        cycle = (_length_class(first) - _length_class(second) + 1) % 3 - 1  # -1, 0 or 1
        return self.skill * difference + self.position_bias + self.intransitivity * cycle

    def compare(self, prompt: str, first: str, second: str) -> Comparison:
        """The probabilities of "first", "second" and "tie" (Davidson 1970, eq. 2.5; without ties Bradley-Terry)."""
        half = max(-300.0, min(300.0, self.log_odds(prompt, first, second) / 2))
        a, b, tie = math.exp(half), math.exp(-half), self.tie_propensity
        return Comparison(a / (a + b + tie), b / (a + b + tie), tie / (a + b + tie))

    def choose(self, prompt: str, first: str, second: str, rng: random.Random) -> str:
        """One verdict: "first", "second" or "tie"."""
        return rng.choices(Comparison._fields, weights=self.compare(prompt, first, second))[0]

    def rank(self, prompt: str, responses: Sequence[str], rng: random.Random) -> list[int]:
        """The rank of each response, 1 for the best, by the model of Plackett (1975) and Luce (1959), under which any
        two responses are ordered as Bradley and Terry have it. Position, ties and cycles play no part."""
        # The order of values with standard Gumbel noise is a draw from that model (Yellott 1977).
        noisy = [self.skill * self.utility(prompt, r) - math.log(rng.expovariate(1.0)) for r in responses]
        order = sorted(range(len(responses)), key=lambda i: -noisy[i])
        return [order.index(i) + 1 for i in range(len(responses))]


def crowd(subset: str) -> tuple[Annotator, ...]:
    """The default labelers of a subset: of unequal skill, all a little partial to long answers and to the first one.

    Helpful comparisons ask which answer helps more, harmless ones which does less harm.
    """
    harmless = float(subset.startswith("harmless"))
    skills = (0.9, 1.2, 1.2, 1.5, 1.5, 1.8, 1.8, 2.4)
    return tuple(
        Annotator(skill=skill, helpfulness=1 - harmless, harmlessness=harmless, length_bias=0.01, position_bias=0.1)
        for skill in skills
    )


def held_out_crowd() -> tuple[Annotator, ...]:
    """Labelers of helpful answers whose verdicts no model was trained on: the same taste, but no partiality to length
    or position. What pleases only the default crowd does not please them."""
    return tuple(Annotator(skill=skill) for skill in (1.0, 1.3, 1.6, 2.0))


def columns(labeler: Annotator, prompt: str, responses: Sequence[str], rng: random.Random, count: int = 5) -> list[int]:
    """The column, 1 for the best, into which a labeler sorts each response, as in InstructGPT's interface (arXiv
    2203.02155, figure 12): what stands in one column is tied.

    The labeler sees utilities through the noise of Plackett and Luce, as in `Annotator.rank`, and spreads them over
    equal steps from the best to the worst. Equal responses stand together.
    """
    noise = {response: -math.log(rng.expovariate(1.0)) for response in dict.fromkeys(responses)}
    seen = [labeler.skill * labeler.utility(prompt, response) + noise[response] for response in responses]
    best, step = max(seen), (max(seen) - min(seen)) / count
    return [min(count, 1 + int((best - value) / step)) if step else 1 for value in seen]


def agreement(labelers: Sequence[Annotator], prompt: str, first: str, second: str) -> float:
    """The probability that two different labelers, drawn at random, give the same verdict on this pair."""
    verdicts = [labeler.compare(prompt, first, second) for labeler in labelers]
    n = len(verdicts)
    total = [sum(column) for column in zip(*verdicts, strict=True)]
    same_labeler = sum(p * p for verdict in verdicts for p in verdict)
    return (sum(t * t for t in total) - same_labeler) / (n * (n - 1))


def ceiling(labelers: Sequence[Annotator], prompt: str, first: str, second: str) -> float:
    """The probability that a random labeler agrees with the crowd's favorite: on average over pairs, the accuracy that
    no model of these labels can exceed."""
    verdicts = [labeler.compare(prompt, first, second) for labeler in labelers]
    return max(sum(column) for column in zip(*verdicts, strict=True)) / len(verdicts)


def _length_class(response: str) -> int:
    return min(2, max(0, len(sentences(response)) - 1) // 2)  # up to two sentences, three or four, more
