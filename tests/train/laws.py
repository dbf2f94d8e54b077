"""Laws with known constants, and runs that they generate."""

from typing import Final

import numpy as np

from lmsplit.train.runs import Runs
from lmsplit.train.scaling import LAWS, Parameters, Points
from lmsplit.train.scaling_fit import Fit

DOMAINS: Final = ("d00000", "d00001", "d00002", "d00003")
FLOORS: Final = np.log([1.6, 1.8, 2.0, 2.2])
TRUTHS: Final = {
    "F0": Parameters(FLOORS, np.log(482.0), np.log([2085.0]), 0.348, np.array([0.366])),
    "F1": Parameters(FLOORS, np.log(482.0), np.log([700.0, 9.1]), 0.348, np.array([0.366, 0.2, np.log(1e5)])),
    "F2": Parameters(FLOORS, np.log(482.0), np.log([1500.0]), 0.348, np.array([0.4, np.log(660.0), 0.6])),
    "F3": Parameters(FLOORS, np.log(482.0), np.log([152.0]), 0.348, np.array([0.15, 0.1, -0.005, np.log(1e5)])),
    "F4": Parameters(FLOORS, np.log(482.0), np.log([152.0]), 0.348, np.array([0.15, 0.1, -0.005, np.log(1e5), 0.15])),
}


def truth(name: str) -> Fit:
    """Return a law with its known constants, as if it had been fitted."""
    return Fit(LAWS[name], TRUTHS[name], np.zeros(1), 1e-3, (), 0)


def grid(num_runs: int = 200, seed: int = 0) -> Points:
    """Return runs of five sizes, five D, no and four D', four domains."""
    generator = np.random.default_rng(seed)
    sizes, pretraining = 1e6 * 2.0 ** np.arange(5), 5e6 * 2.0 ** np.arange(5)
    specialization = np.concatenate([[0.0], 5e5 * 3.0 ** np.arange(4)])
    cells = np.stack([each.ravel() for each in np.meshgrid(sizes, pretraining, specialization)], axis=1)
    chosen = cells[generator.permutation(np.arange(num_runs) % len(cells))]
    return Points(*chosen.T, np.arange(num_runs) % len(DOMAINS))


def measured(name: str, noise: float = 0.005, num_runs: int = 200, seed: int = 0) -> Runs:
    """Return runs whose losses a law gives, with relative noise."""
    points = grid(num_runs, seed)
    factor = np.exp(np.random.default_rng([seed, 1]).normal(0, noise, num_runs))
    return Runs(points, truth(name).predict(points) * factor, DOMAINS)
