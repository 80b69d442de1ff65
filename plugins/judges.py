"""Built-in judges: rules that score responses and stand in for people in rehearsals and evaluation.

Gates never see a judge: training must learn from votes alone what the judge measures.

Left out: judges that need a model or an account (those are plugins).
"""

from __future__ import annotations

from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from thumbwise import hookimpl
from thumbwise.contracts import Register


def sentiment(prompt: str, responses: list[str]) -> list[float]:
    """Score each response by VADER's compound sentiment, -1 (negative) to 1 (Hutto and Gilbert, 2014)."""
    analyzer = _analyzer()
    return [float(analyzer.polarity_scores(response)["compound"]) for response in responses]


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    """Read the lexicon once, at the first use."""
    return SentimentIntensityAnalyzer()


def concise(prompt: str, responses: list[str]) -> list[float]:
    """Score each response by its distance from 25 words, minus 30 unless it is finished and has at least 8 words."""
    return [_concise(response) for response in responses]


def _concise(response: str) -> float:
    """One score. Without the 30, the number of words alone would favour a reply that is cut off at 25."""
    words = len(response.split())
    finished = words >= 8 and response.strip().endswith((".", "!", "?"))
    return float((0 if finished else -30) - abs(words - 25))


@hookimpl
def register_judges(register: Register) -> None:
    """Offer `sentiment` and `concise`."""
    register("sentiment", sentiment)
    register("concise", concise)
