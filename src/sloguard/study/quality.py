"""Whether a config that may change answers changes them too much.

The engine completes fixed prompts greedily, one at a time, before any load. Its answers are held against those of the
first trial that changes nothing, which is the engine's default where that runs. Greedy answers of one config differ now
and then themselves, where two tokens are nearly as likely, and once they differ they go apart: so only leading tokens
count, and one answer that leaves early costs little of the mean.
"""

from __future__ import annotations

from itertools import takewhile
from statistics import fmean

from sloguard.engine.base import Questions
from sloguard.trial import Answer, Answers

TOKENS = 32  # of an answer
PROMPTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):\n",
    "SELECT name, age FROM users WHERE",
    "To make bread you need flour, water, yeast and",
    "The three primary colours are",
    "17 + 25 =",
    "A train leaves at nine and travels for three hours, so it arrives at",
    "Translate to German: Good morning, how are you?\n",
    "List the planets from the sun outwards: Mercury, Venus,",
    '{"name": "Ada", "born": 1815, "field":',
    "Once upon a time, in a village by the sea,",
    "The opposite of generous is",
    "A leap year has 366 days, and an ordinary one has",
    "Dear Ms Baker,\n\nThank you for your letter of",
    "for (int i = 0; i < n; i++) {\n",
)


def questions(reference: Answers, least: float) -> Questions:
    """Passed by answers that agree with `reference` to `least`, and by any where there is none yet."""
    return Questions(PROMPTS, TOKENS, lambda answers: not reference or agreement(answers, reference) >= least)


def agreement(answers: Answers, reference: Answers) -> float:
    """The mean share of leading tokens that agree, from 0 to 1."""
    return fmean(_agreeing(*pair) for pair in zip(answers, reference, strict=True))


def _agreeing(one: Answer, other: Answer) -> float:
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return same / max(len(one), len(other), 1) if one or other else 1.0
