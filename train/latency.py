"""How long an answer takes, and about how much energy: to the first token and for each one after it, the router included.

```
client ─prompt─► router ─► model: prompt ─► first token ─► one token at a time
```

Greedy, by `generate`, with a key-value cache; several clients at once, each with one request after another. They share the
threads that torch has. Several ways to answer take turns, so that whatever else the machine does slows all of them. The first
requests are left out. Times are wall clock. Energy is that of the whole machine while the
requests ran, divided by them; where the machine's power counters cannot be read, it is an estimate from rated power, and says so.
This does *not* judge the answers.

Shapes: R requests; T tokens; B draws.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from lmsplit.train.answers import DRAWS, percentiles
from lmsplit.train.energy import measured_energy

_JOULES_PER_KWH: Final = 3.6e6
_WARM_UP: Final = 2
_TURNS: Final = 10
"""Of each way where energy is measured, of each turn by itself: of more of them the measuring would be felt."""
_COUNTERS: Final = Path("/sys/class/powercap")

Floats = npt.NDArray[np.float64]
Route = Callable[[str], PreTrainedModel]
"""Returns the model that answers a prompt."""


class Request(NamedTuple):
    """One answer's times, seconds."""

    route_s: float
    """Of the router."""
    first_s: float
    """To the first token, the router included."""
    tokens_s: tuple[float, ...]
    """Of each token after it."""


class Latency(NamedTuple):
    """Requests that were answered."""

    requests: tuple[Request, ...]
    kwh: float | None
    """Of the machine meanwhile; None where it was not measured."""

    def first_s(self) -> Floats:
        """Return (R,) the times to the first token."""
        return np.array([each.first_s for each in self.requests])

    def answer_s(self) -> Floats:
        """Return (R,) the times to the last token."""
        return np.array([each.first_s + sum(each.tokens_s) for each in self.requests])

    def with_more(self, requests: tuple[Request, ...], kwh: float | None) -> "Latency":
        """Return these requests and more, with the energy of all; None where that of some is not known."""
        return Latency(self.requests + requests, None if self.kwh is None or kwh is None else self.kwh + kwh)

    def to_json(self) -> dict[str, Any]:
        """Return medians and 95th percentiles, seconds, and joules per answer."""
        route_R = np.array([each.route_s for each in self.requests])
        first_R, whole_R = self.first_s(), self.answer_s()
        token_T = np.array([second for each in self.requests for second in each.tokens_s])
        found: dict[str, Any] = {"requests": len(self.requests)}
        for name, values in (("route", route_R), ("first_token", first_R), ("token", token_T), ("answer", whole_R)):
            p50, p95 = np.percentile(values, [50, 95]) if len(values) else (None, None)
            found |= {f"{name}_p50_s": p50, f"{name}_p95_s": p95}
        found["route_share"] = float(np.median(route_R / first_R))
        found["joules_per_answer"] = None if self.kwh is None else self.kwh * _JOULES_PER_KWH / len(self.requests)
        found["energy_is_an_estimate"] = None if self.kwh is None else not has_power_counters()
        return found


def measure_latency(
    prompts: Sequence[str],
    tokenize: Callable[[str], list[int]],
    ways: Mapping[str, Route],
    answer_tokens: int,
    num_clients: int = 1,
    energy: bool = False,
) -> dict[str, Latency]:
    """Answer prompts in each of several ways, as many at a time as there are clients or, with energy, a tenth, and time it.

    Args:
        prompts: each is answered once in each way; taken by the clients in turn.
        tokenize: returns a prompt's ids, at least one; part of the time to the first token too.
        ways: each names the model; what it takes is part of the time to the first token.
        answer_tokens: T, at least 1.
        num_clients: requests at a time.
        energy: measure that too, with codecarbon.

    Returns:
        The ways' times, the requests in the order of the prompts.

    Raises:
        ConfigurationError: energy is asked for and codecarbon is not installed.
    """
    for route in ways.values():
        for prompt in prompts[:_WARM_UP]:
            _answer(prompt, tokenize, route, answer_tokens)
    found = dict.fromkeys(ways, Latency((), 0.0 if energy else None))
    size = max(num_clients, -(-len(prompts) // _TURNS)) if energy else num_clients
    for turn, start in enumerate(range(0, len(prompts), size)):
        for name in list(ways)[:: -1 if turn % 2 else 1]:  # whoever comes last in a turn comes first in the next
            answer = partial(_answer, tokenize=tokenize, route=ways[name], answer_tokens=answer_tokens)
            with measured_energy(energy) as used, ThreadPoolExecutor(num_clients) as clients:
                requests = tuple(clients.map(answer, prompts[start : start + size]))
            found[name] = found[name].with_more(requests, used.kwh)
    return found


def median_difference(times_R: Floats, other_R: Floats) -> tuple[float, float, float]:
    """Return the median of how much longer one way takes than another for the same prompts, seconds, and its 95 % interval.

    Args:
        times_R: of the one way.
        other_R: of the other, for the same prompts.

    >>> median_difference(np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0]))
    (2.0, 2.0, 2.0)
    """
    differences_R = times_R - other_R
    drawn_BR = np.random.default_rng(0).integers(len(differences_R), size=(DRAWS, len(differences_R)))
    return float(np.median(differences_R)), *percentiles(np.median(differences_R[drawn_BR], axis=1))


def has_power_counters() -> bool:
    """Return whether the processor's own energy counters can be read here."""
    return any(os.access(path, os.R_OK) for path in _COUNTERS.glob("*/energy_uj"))


class _Clock(BaseStreamer):
    """Takes the time at which each token is there; handing it over waits for the device."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then each token."""
        value.tolist()
        if self._has_prompt:
            self.moments.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        """Take no more."""


def _answer(prompt: str, tokenize: Callable[[str], list[int]], route: Route, answer_tokens: int) -> Request:
    started = time.perf_counter()
    model = route(prompt)
    routed = time.perf_counter()
    clock = _Clock()
    model.generate(
        torch.tensor([tokenize(prompt)], device=model.device),
        max_new_tokens=answer_tokens,
        min_new_tokens=answer_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    moments = clock.moments
    return Request(routed - started, moments[0] - started, tuple(np.diff(moments).tolist()))
