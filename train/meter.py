"""Counts what a run does without waiting for the device: tokens, time, waiting for data, share of the hardware's peak.

The counts belong to the run, not to the process: they are kept in its checkpoints and go on after a resume. This does *not*
look at tensors' values.
"""

import functools
import time
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

_PEAKS: Final = {  # dense, without sparsity: NVIDIA's data sheets of each product
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "B200": 2250e12,
}
"""FLOP/s in bfloat16 by a part of the device's name; the first that fits."""


class Meter(TrainerCallback, ExportableState):
    """The counts of a run.

    Args:
        num_tokens: tokens trained on so far, over all processes, padding included.
        train_s: seconds in the training loop so far.
        data_wait_s: seconds of these that the loop waited for its next batch.
        data: what the run trains on, for a resumed one to compare.
    """

    def __init__(
        self, num_tokens: int = 0, train_s: float = 0.0, data_wait_s: float = 0.0, data: dict[str, Any] | None = None
    ) -> None:
        self.data = data
        self.num_tokens = num_tokens
        self.data_wait_s = data_wait_s
        self._train_s = train_s
        self._since: float | None = None
        self._logged = (num_tokens, train_s, data_wait_s)

    @property
    def train_s(self) -> float:
        """Seconds in the training loop, up to now."""
        return self._train_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        counts = {"num_tokens": self.num_tokens, "train_s": self.train_s, "data_wait_s": self.data_wait_s}
        return {"args": counts | {"data": self.data}, "attributes": {}}

    def on_train_begin(self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_kwargs: Any) -> None:
        """Start the clock."""
        self._since = time.monotonic()
        self._logged = (self.num_tokens, self._train_s, self.data_wait_s)

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Any) -> None:
        """Log wherever a checkpoint is written, so that a resumed run's log lines are those of an undisturbed one."""
        control.should_log |= control.should_save or state.global_step >= state.max_steps

    def on_train_end(self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_kwargs: Any) -> None:
        """Stop the clock."""
        self._train_s, self._since = self.train_s, None

    def rates(self, num_parameters: int, peak: float | None) -> dict[str, float]:
        """Return the rates since they were last asked for.

        Args:
            num_parameters: of the model; a token costs 6 FLOP for each (arXiv 2001.08361, section 2.1).
            peak: FLOP/s of all devices together; None leaves the utilisation out.
        """
        now = (self.num_tokens, self.train_s, self.data_wait_s)
        tokens, seconds, waited = (after - before for after, before in zip(now, self._logged, strict=True))
        self._logged = now
        if seconds <= 0:
            return {}
        rates = {"tokens_per_s": tokens / seconds, "data_wait_fraction": waited / seconds}
        if peak:
            rates["model_flops_utilization"] = 6 * num_parameters * tokens / seconds / peak
        return rates


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a device's FLOP/s for matrix products: a GPU's by its data sheet, a CPU's measured, once in a process (0.2 s).

    Args:
        device: where the model is.
        dtype: of the products.

    Returns:
        None for a GPU that is not in the table, or one that computes in float32.
    """
    if device.type == "cpu":
        return _measured_peak(dtype, torch.get_num_threads())
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


@functools.cache
def _measured_peak(dtype: torch.dtype, _num_threads: int) -> float:
    """Multiply larger and larger matrices; stop where a product is slow, as in bf16 on a CPU without instructions for it.

    Remembered for each number of threads.
    """
    best = 0.0
    for size in (256, 512, 1024):
        left = torch.ones(size, size, dtype=dtype)
        for _ in range(5):
            began = time.perf_counter()
            torch.mm(left, left)
            elapsed = time.perf_counter() - began
            best = max(best, 2 * size**3 / elapsed)
            if elapsed > 0.1:
                return best
    return best
