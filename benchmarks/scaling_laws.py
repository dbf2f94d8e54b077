"""Does the planner find the law that made some losses, its optimum, and how sure it is?

Losses are drawn from each law with 0.5 % of noise, at 200 runs: four sizes, five D, no and four D', four domains. Then, as
`lmsplit plan` does: every law is fitted, one chosen, a budget of four times the dearest run's allocated, 200 fits of the
bootstrap.

- `selected`: draws in which the generating law is chosen; `by domain`: in which each domain gets a law of its own, though they
  share one. `D* error`: median |D / the law's own D* − 1| with the chosen law, and
  with the generating law; `Cramér-Rao`: what no unbiased estimate that knows the law can beat. `covered`: how often the 90 %
  interval of the predicted loss holds the law's loss there, and that of the share of pretraining the best share. `seconds`:
  median of the whole.
- `scaling_chinchilla`: 245 runs over the published range (70M to 16B parameters, 6e18 to 3e21 FLOPs, 5B to 500B tokens), N and D
  tied to each other by it as there, with the constants of arXiv 2404.10102, without noise and with 0.5 %: the constants found.

Takes 50 minutes on one core.
"""

import argparse
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
from measure import write_results

from lmsplit.train.allocation import Predictor, Supply, allocate
from lmsplit.train.plan import Question, recommend
from lmsplit.train.runs import Runs
from lmsplit.train.scaling import LAWS, Parameters, Points, log_loss, predict
from lmsplit.train.scaling_domains import OwnFits
from lmsplit.train.scaling_fit import Fit, fit

NOISE: Final = 0.005
NUM_RUNS: Final = 200
DOMAINS: Final = 4
FLOORS: Final = np.log([1.6, 1.8, 2.0, 2.2])
TRUTHS: Final = {
    "F0": Parameters(FLOORS, np.log(482.0), np.log([2085.0]), 0.348, np.array([0.366])),
    "F1": Parameters(FLOORS, np.log(482.0), np.log([700.0, 9.1]), 0.348, np.array([0.366, 0.2, np.log(1e5)])),
    "F2": Parameters(FLOORS, np.log(482.0), np.log([1500.0]), 0.348, np.array([0.4, np.log(660.0), 0.6])),
    "F3": Parameters(FLOORS, np.log(482.0), np.log([152.0]), 0.348, np.array([0.15, 0.1, -0.005, np.log(1e5)])),
    "F4": Parameters(FLOORS, np.log(482.0), np.log([152.0]), 0.348, np.array([0.15, 0.1, -0.005, np.log(1e5), 0.15])),
}
NORMAL_MEDIAN: Final = 0.6745
"""Median of |x| of a standard normal distribution."""
CHINCHILLA: Final = Parameters(np.log([1.8172]), np.log(482.01), np.log([2085.43]), 0.3478, np.array([0.3658]))


def design(seed: int) -> Points:
    """Return runs on a grid, each on one domain."""
    generator = np.random.default_rng(seed)
    sizes, pretraining = 1e6 * 2.0 ** np.arange(4), 5e6 * 4.0 ** np.arange(5)
    specialization = np.concatenate([[0.0], 5e5 * 5.0 ** np.arange(4)])
    cells = np.stack([each.ravel() for each in np.meshgrid(sizes, pretraining, specialization)], axis=1)
    chosen = cells[generator.permutation(np.arange(NUM_RUNS) % len(cells))]
    return Points(*chosen.T, np.arange(NUM_RUNS) % DOMAINS)


def as_fit(name: str, parameters: Parameters) -> Fit:
    """Return a law as if it had been fitted."""
    return Fit(LAWS[name], parameters, np.zeros(1), 1e-3, (), 0)


def budget_of(points: Points) -> tuple[float, float]:
    """Return the size to plan for, the largest, and four times the compute of the dearest run and its siblings."""
    dearest = (points.num_parameters_R * (points.pretraining_R + DOMAINS * points.specialization_R)).max()
    return float(points.num_parameters_R.max()), 6.0 * float(dearest) * 4


def optimum(name: str, vector_P: Any) -> float:
    """Return D* of a law, in the whole budget."""
    size, budget = budget_of(design(0))
    found = as_fit(name, Parameters.of(vector_P, LAWS[name]))
    return allocate(Predictor(found, DOMAINS), size, budget, Supply(np.full(DOMAINS, np.inf), 4.0)).pretraining


def lower_bound(name: str) -> float:
    """Return the median error of D* of an estimate that reaches the Cramér-Rao bound."""
    vector_P = TRUTHS[name].vector()
    _, gradient_PR = log_loss(LAWS[name], vector_P, design(0))
    scale_P = np.linalg.norm(gradient_PR, axis=1)
    information_PP = (gradient_PR / scale_P[:, None]) @ (gradient_PR / scale_P[:, None]).T / NOISE**2
    step = 1e-3
    slopes = [
        (np.log(optimum(name, vector_P + step * each)) - np.log(optimum(name, vector_P - step * each))) / (2 * step)
        for each in np.eye(len(vector_P))
    ]
    slope_P = np.array(slopes) / scale_P
    return float(NORMAL_MEDIAN * np.sqrt(slope_P @ np.linalg.solve(information_PP, slope_P)))


def trial(name: str, seed: int) -> dict[str, Any]:
    """Draw losses from a law and plan with them."""
    points = design(seed)
    truth = as_fit(name, TRUTHS[name])
    noise = np.random.default_rng([seed, 1]).normal(0, NOISE, NUM_RUNS)
    runs = Runs(points, truth.predict(points) * np.exp(noise), tuple(f"d{number:05}" for number in range(DOMAINS)))
    size, budget = budget_of(points)
    question = Question(budget, (size,))
    supply = Supply(np.full(DOMAINS, np.inf), 4.0)
    best = allocate(Predictor(truth, DOMAINS), size, question.budget, supply)
    began = time.monotonic()
    plan = recommend(runs, question)
    seconds = time.monotonic() - began
    own = allocate(Predictor(plan.choice.judgements[name].fit, DOMAINS), size, question.budget, supply)
    true_K = Predictor(truth, DOMAINS).losses(size, np.array([plan.best.pretraining]), plan.best.specialization_K[:, None])
    low, high = plan.interval
    least, most = plan.fraction_interval
    return {
        "selected": plan.choice.law,
        "by domain": isinstance(plan.choice.fit, OwnFits),
        "error": abs(plan.best.pretraining / best.pretraining - 1),
        "own error": abs(own.pretraining / best.pretraining - 1),
        "covered": low <= true_K.mean() <= high,
        "fraction covered": least - 1e-9 <= best.pretraining_fraction <= most + 1e-9,
        "seconds": seconds,
        "share": best.pretraining_fraction,
    }


def row(name: str, num_draws: int, workers: int) -> dict[str, Any]:
    """Return a row of the table."""
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(partial(trial, name), range(num_draws)))
    mean = {key: statistics.mean(float(each[key]) for each in found) for key in ("covered", "fraction covered")}
    chosen = [each["selected"] for each in found]
    return {
        "law": name,
        "best share": found[0]["share"],
        "selected": chosen.count(name) / num_draws,
        "others": ", ".join(f"{other} {chosen.count(other)}" for other in LAWS if other != name and other in chosen),
        "by domain": statistics.mean(each["by domain"] for each in found),
        "D* error": statistics.median(each["error"] for each in found),
        "by the generating law": statistics.median(each["own error"] for each in found),
        "Cramér-Rao": lower_bound(name),
        "loss covered": mean["covered"],
        "share covered": mean["fraction covered"],
        "seconds": statistics.median(each["seconds"] for each in found),
    }


def chinchilla(noise: float) -> dict[str, Any]:
    """Return the constants that are found in losses made by the published ones."""
    generator = np.random.default_rng(0)
    sizes, flops = (np.exp(generator.uniform(np.log(low), np.log(high), 5000)) for low, high in ((7e7, 1.6e10), (6e18, 3e21)))
    tokens = flops / 6 / sizes
    chosen = np.flatnonzero((tokens > 5e9) & (tokens < 5e11))[:245]
    points = Points(sizes[chosen], tokens[chosen], np.zeros(245), np.zeros(245, np.int64))
    loss_R = predict(LAWS["F0"], CHINCHILLA, points) * np.exp(generator.normal(0, noise, 245))
    values = fit(LAWS["F0"], points, loss_R).parameters
    return {
        "Chinchilla": f"{noise:.1%} of noise",
        "E": float(np.exp(values.log_floor_K[0])),
        "A": float(np.exp(values.log_size)),
        "B": float(np.exp(values.log_coefficient_T[0])),
        "alpha": values.size_exponent,
        "beta": float(values.exponent_Q[0]),
    }


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows = []
    for name in TRUTHS:
        rows.append(row(name, options.draws, options.workers))
        sys.stderr.write(f"{rows[-1]}\n")
    write_results("scaling_laws", "Laws found again", __doc__ or "", rows)
    rows = [chinchilla(noise) for noise in (0.0, NOISE)]
    write_results("scaling_chinchilla", "Chinchilla's constants found again", __doc__ or "", rows)


if __name__ == "__main__":
    main()
