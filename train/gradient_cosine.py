"""The cosine between the gradients of the own and of the other domains' loss, once for each log line.

Below 0 what teaches the own domain hurts the others. It is taken at the first step after a log line that has rows of other
domains, from the gradients as they come, before they are clipped: one more backward pass, or two, over the other rows alone, and
two copies of the gradient for a moment. This changes no gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch

Gradients = Sequence[torch.Tensor | None]


class GradientCosine:
    """Takes the cosine of one step after another.

    Args:
        parameters: those that are trained.
        reduce: averages a tensor over all processes, as the gradients are; every process calls it.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], reduce: Any) -> None:
        self._parameters = list(parameters)
        self._reduce = reduce
        self._wanted = True
        self._found: torch.Tensor | None = None
        self._off: list[torch.Tensor] | None = None
        self._penalty: list[torch.Tensor] | None = None

    @property
    def wanted(self) -> bool:
        """Whether this log line still lacks its cosine."""
        return self._wanted

    def note(self, loss: torch.Tensor, penalty: torch.Tensor) -> None:
        """Take the gradients of a batch of other rows; call it before the backward pass.

        Args:
            loss: the plain loss on them.
            penalty: their part of the objective.
        """
        self._off = self._sum(self._off, loss)
        self._penalty = self._sum(self._penalty, penalty)

    def after_backward(self) -> None:
        """Take the own gradient as what is left of the step's; call it once all of the step is in `grad`."""
        if not self._wanted:
            return
        device = self._parameters[0].device
        seen = self._reduce(torch.tensor(float(self._off is not None), device=device))
        if not seen.item():
            return
        dots = torch.zeros(3, device=device)
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            off, penalty = (
                self._reduce(torch.zeros_like(parameter.grad) if each is None else each[index])
                for each in (self._off, self._penalty)
            )
            own = parameter.grad - penalty
            dots += torch.stack([(own * off).sum(), own.square().sum(), off.square().sum()]).float()
        self._found = dots[0] / (dots[1] * dots[2]).sqrt()
        self._wanted, self._off, self._penalty = False, None, None

    def take(self) -> dict[str, float]:
        """Return the newest cosine, and want the next one."""
        found, self._found, self._wanted = self._found, None, True
        value = float("nan") if found is None else found.item()
        return {} if value != value else {"gradient_cosine": value}

    def _sum(self, sums: list[torch.Tensor] | None, value: torch.Tensor) -> list[torch.Tensor]:
        gradients: Gradients = [None] * len(self._parameters)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, self._parameters, retain_graph=True, allow_unused=True)
        found = [
            torch.zeros_like(parameter) if each is None else each
            for parameter, each in zip(self._parameters, gradients, strict=True)
        ]
        return found if sums is None else [before + each for before, each in zip(sums, found, strict=True)]
