"""The choice between laws: by runs larger than those fitted. How often it is right: `benchmarks/scaling_laws.py`."""

import numpy as np
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.scaling import LAWS
from lmsplit.train.scaling_choice import choose, heldout_scales
from tests.train.laws import grid, measured


@pytest.mark.parametrize("name", LAWS)
def test_choose_finds_the_law_that_made_the_losses(name: str) -> None:
    runs = measured(name, seed=1)
    assert choose(runs.points, runs.loss_R).law == name


def test_choose_says_how_well_every_law_does() -> None:
    runs = measured("F1")
    found = choose(runs.points, runs.loss_R)
    assert list(found.judgements) == list(LAWS)
    assert found.scales == ("N", "D'", "D")
    null, best = found.judgements["F0"], found.judgements["F1"]
    assert null.mre > 5 * best.mre
    assert best.heldout_mre is not None
    assert null.heldout_mre is not None
    assert null.heldout_mre > best.heldout_mre
    assert 0.99 < best.r2 <= 1


def test_choose_leaves_out_laws_with_more_parameters_than_runs() -> None:
    runs = measured("F3")
    chosen = np.arange(200) < 21
    found = choose(runs.points.take(chosen), runs.loss_R[chosen])
    assert set(found.judgements) <= {"F0", "F2"}
    few = np.arange(200) < 5
    with pytest.raises(ConfigurationError, match="law F0 has 8 parameters, and there are 5 runs"):
        choose(runs.points.take(few), runs.loss_R[few])


def test_choose_refuses_runs_that_are_too_much_alike() -> None:
    """What one training leaves: a seed and its experts, with one N, one D and one D'."""
    points = grid()
    one = points._replace(
        num_parameters_R=np.full(200, 1e6),
        pretraining_R=np.full(200, 3e6),
        specialization_R=np.where(points.specialization_R > 0, 3e5, 0.0),
    )
    loss_R = np.where(one.specialization_R > 0, 3.5, 4.0)
    with pytest.raises(ConfigurationError, match=r"do not pin F0, F1, F2, F3, F4 down: they have 1 of N, 1 of D, 2 of D'"):
        choose(one, loss_R)


def test_heldout_scales_are_the_largest_of_each() -> None:
    points = grid(250)
    found = heldout_scales(points)
    assert (found["N"] == (points.num_parameters_R == 1.6e7)).all()
    assert (found["D"] == (points.pretraining_R == 8e7)).all()
    assert (found["D'"] == (points.specialization_R == 1.35e7)).all()


def test_heldout_scales_need_three_values() -> None:
    points = grid()
    two = points.take(points.num_parameters_R < 3e6)
    assert set(heldout_scales(two)) == {"D", "D'"}
