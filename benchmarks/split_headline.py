"""May small experts stand for a larger model? Cloze questions and latencies of routed experts and dense models, side by side.

What the tables of `split_or_dense.py` say of it; that script trains and judges, and runs this.

Shapes: S seeds, Q questions, R requests, B draws.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from paired import Judged

from lmsplit.train.answers import DRAWS, percentiles
from lmsplit.train.campaign import Campaign
from lmsplit.train.evaluate import timed_prompts, timed_ways
from lmsplit.train.latency import Latency, measure_latency
from lmsplit.train.loss_table import measure, trained_models
from lmsplit.train.router import Router

ANSWER: Final = 32
REQUESTS: Final = 300


class Way(NamedTuple):
    """Routed experts, or a dense model, of one size."""

    parameters: int
    answered: list[pl.DataFrame]
    """Of each seed, the questions that are judged, as `Cell.answered` has them."""
    column: str
    answer_R: npt.NDArray[np.float64]
    """Seconds that the first seed's take for the same prompts."""

    def answers(self) -> npt.NDArray[np.float64]:
        """Return whether each question is answered right, by seed."""
        return np.stack([each[self.column].to_numpy() for each in self.answered]).astype(np.float64)

    def questions(self) -> Judged:
        """Return what is asked, the same of all ways."""
        _, domains = np.unique(self.answered[0]["domain"].to_numpy(), return_inverse=True)
        return Judged(np.ones(len(domains), np.int64), domains, self.answered[0]["group"].to_numpy())

    def accuracy(self) -> float:
        """Return the share that is answered right, a mean over domains and seeds."""
        return self.questions().interval(self.answers())[0]

    def more_accurate(self, other: "Way") -> tuple[float, float, float]:
        """Return by how much the accuracy is above another way's, and its interval."""
        return self.questions().interval(self.answers() - other.answers())

    def slower(self, other: "Way") -> tuple[float, float, float]:
        """Return the median latency over another way's, less 1, and its interval."""
        count = len(self.answer_R)
        drawn_BR = np.random.default_rng(0).integers(count, size=(DRAWS, count))
        ratio_B = np.median(self.answer_R[drawn_BR], axis=1) / np.median(other.answer_R[drawn_BR], axis=1)
        low, high = percentiles(ratio_B)
        return float(np.median(self.answer_R) / np.median(other.answer_R)) - 1, low - 1, high - 1


def timed(campaigns: Sequence[Campaign]) -> list[dict[str, Latency]]:
    """Return how long each size's routed experts take, and its seed alone, as large as the dense model: all take turns."""
    ways, prompts, tokenize = {}, None, None
    for campaign in campaigns:
        table = measure(campaign, trained_models(campaign))
        if prompts is None:
            prompts, tokenize = timed_prompts(campaign, table, REQUESTS)
        ways |= {(campaign.output, name): way for name, way in timed_ways(table, Router.open(campaign.output)).items()}
    found = measure_latency(prompts, tokenize, ways, ANSWER)
    return [{"routed": found[each.output, "routed"], "dense": found[each.output, "seed"]} for each in campaigns]


def of_ways(routed: Way, dense: Way, latencies: dict[str, Latency]) -> dict[str, float]:
    """Return the cloze accuracies and the latencies of a row of the first table."""
    found = {"cloze, routed": routed.accuracy(), "cloze, dense": dense.accuracy()}
    found |= {f"first token, {name}": 1e3 * float(np.median(each.first_s())) for name, each in latencies.items()}
    return found | {f"answer, {name}": 1e3 * float(np.median(each.answer_s())) for name, each in latencies.items()}


def headline(routed: Sequence[Way], dense: Sequence[Way]) -> list[dict[str, Any]]:
    """Return, for each dense model, the smallest routed experts that are no less accurate, and the best ones as fast."""
    found = []
    for large in dense:
        facts = {"dense": large.parameters, "cloze": large.accuracy(), "answer": 1e3 * float(np.median(large.answer_R))}
        for kind, ways in (("routed", routed), ("dense", dense)):
            able = [each for each in ways if each.accuracy() >= large.accuracy()]
            smallest = min(able, key=lambda each: each.parameters, default=None)
            fast = [each for each in ways if each is large or each.slower(large)[2] <= 0]
            best = max(fast, key=lambda each: each.accuracy(), default=None)
            facts |= beside(f"as accurate, {kind}", smallest, large) | beside(f"as fast, {kind}", best, large)
        found.append(facts)
    return found


def beside(name: str, way: Way | None, large: Way) -> dict[str, Any]:
    """Return the size of a way, its accuracy and its latency beside a dense model's; nothing where there is none."""
    if way is None:
        return dict.fromkeys((name, f"{name}: accuracy", f"{name}: accuracy over", f"{name}: latency"))
    above = way.more_accurate(large)
    return {
        name: way.parameters,
        f"{name}: accuracy": "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * each for each in above)),
        f"{name}: accuracy over": above[0] / large.accuracy(),
        f"{name}: latency": "{:+.0%} [{:+.0%}, {:+.0%}]".format(*way.slower(large)),
    }
