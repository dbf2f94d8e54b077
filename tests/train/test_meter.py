"""The counts of a run: rates by hand with a clock of our own, and what a checkpoint keeps of them."""

import functools
import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from lmsplit.train import meter
from lmsplit.train.meter import Meter, peak_flops


class Clock:
    """Time that stands still unless it is told to go on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    standing = Clock()
    monkeypatch.setattr("lmsplit.train.meter.time.monotonic", standing)
    yield standing
    monkeypatch.undo()


def begin(meter: Meter) -> None:
    meter.on_train_begin(None, None, None)


def count(meter: Meter, clock: Clock, tokens: int, seconds: float, waited: float) -> None:
    meter.num_tokens += tokens
    meter.data_wait_s += waited
    clock.now += seconds


def test_rates_by_hand(clock: Clock) -> None:
    meter = Meter()
    begin(meter)
    count(meter, clock, tokens=600, seconds=3, waited=0.75)
    rates = meter.rates(num_parameters=10, peak=24_000)
    assert rates == {"tokens_per_s": 200, "data_wait_fraction": 0.25, "model_flops_utilization": 0.5}
    count(meter, clock, tokens=100, seconds=4, waited=1)
    assert meter.rates(10, None) == {"tokens_per_s": 25, "data_wait_fraction": 0.25}
    assert meter.rates(10, None) == {}  # no time has passed


def test_clock_runs_in_the_training_loop_only(clock: Clock) -> None:
    meter = Meter()
    clock.now += 5
    assert meter.train_s == 0
    begin(meter)
    clock.now += 2
    assert meter.train_s == 2
    meter.on_train_end(None, None, None)
    clock.now += 7
    assert meter.train_s == 2
    begin(meter)
    clock.now += 1
    assert meter.train_s == 3


def test_counts_survive_a_checkpoint(clock: Clock) -> None:
    """What stands in JSON makes a meter that goes on, and whose first rates are those of its own attempt."""
    meter = Meter(data={"rows": "abc", "processes": 2})
    begin(meter)
    count(meter, clock, tokens=600, seconds=3, waited=1)
    kept = json.loads(json.dumps(meter.state()))
    again = Meter.from_state(kept)
    assert again.state() == meter.state()
    assert (again.num_tokens, again.train_s, again.data_wait_s, again.data) == (600, 3, 1, {"rows": "abc", "processes": 2})
    clock.now += 100
    begin(again)
    count(again, clock, tokens=100, seconds=1, waited=0.5)
    assert again.rates(1, None) == {"tokens_per_s": 100, "data_wait_fraction": 0.5}
    assert (again.num_tokens, again.train_s, again.data_wait_s) == (700, 4, 1.5)


def test_rates_are_those_of_this_training(clock: Clock) -> None:
    """What an earlier one did after its last line is not counted in the first line of the next."""
    meter = Meter()
    begin(meter)
    count(meter, clock, tokens=600, seconds=3, waited=1)
    meter.on_train_end(None, None, None)
    begin(meter)
    count(meter, clock, tokens=10, seconds=2, waited=1)
    assert meter.rates(1, None) == {"tokens_per_s": 5, "data_wait_fraction": 0.5}


@pytest.mark.parametrize(("saves", "step", "logs"), [(False, 3, False), (True, 3, True), (False, 9, True)])
def test_log_line_stands_at_every_checkpoint_and_at_the_end(saves: bool, step: int, logs: bool) -> None:
    control = TrainerControl(should_save=saves)
    Meter().on_step_end(None, TrainerState(global_step=step, max_steps=9), control)
    assert control.should_log is logs


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_of_a_gpu_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == peak
    assert peak_flops(torch.device("cuda", 0), torch.float32) is None


def test_peak_of_another_device_is_not_known() -> None:
    assert peak_flops(torch.device("meta"), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("seconds", "size", "best"),
    [
        ([9e-3] * 5 + [9e-3] * 5 + [0.04, 0.02, 0.03, 0.03, 0.03], 1024, 0.02),
        ([0.05] * 5 + [0.4], 512, 0.4),  # slow: the largest is left out
        ([0.2], 256, 0.2),
    ],
)
def test_peak_of_a_cpu_is_measured_once_by_its_fastest_product(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], size: int, best: float
) -> None:
    times = iter([time for each in seconds for time in (0.0, each)])
    monkeypatch.setattr("lmsplit.train.meter.time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(torch, "mm", lambda *_: None)
    monkeypatch.setattr(meter, "_measured_peak", functools.cache(meter._measured_peak.__wrapped__))
    found = [peak_flops(torch.device("cpu"), torch.float32) for _ in range(2)]
    assert found == [2 * size**3 / best] * 2
    assert list(times) == []
