"""The choice between laws: by runs larger than those fitted."""

import numpy as np
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.scaling import LAWS
from lmsplit.train.scaling_choice import choose, heldout_scales
from tests.train.laws import grid, measured


@pytest.mark.parametrize("name", LAWS)
def test_choose_finds_the_law_that_made_the_losses(name: str) -> None:
    found = [choose(runs.points, runs.loss_R).law for runs in (measured(name, seed=seed) for seed in (1, 2, 3))]
    assert found == [name] * 3


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
    runs = measured("F0")
    chosen = np.arange(200) < 10
    found = choose(runs.points.take(chosen), runs.loss_R[chosen])
    assert list(found.judgements) == ["F0"]
    few = np.arange(200) < 5
    with pytest.raises(ConfigurationError, match="there are 5 runs"):
        choose(runs.points.take(few), runs.loss_R[few])


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
