"""Hands an optimizer's state from the seed to its experts, by the names of the parameters, in safetensors.

This does *not* save a running training: its checkpoints do.
"""

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.trainer import DomainTrainer

OPTIMIZER: Final = "optimizer_state.safetensors"


def save_optimizer_state(trainer: DomainTrainer, directory: Path) -> None:
    """Write the tensors that the optimizer keeps for each parameter, called `<parameter>/<tensor>`.

    Raises:
        ConfigurationError: it keeps other things than tensors.
    """
    states = trainer.optimizer.state
    tensors = {}
    for name, parameter in trainer.model.named_parameters():
        for key, value in states.get(parameter, {}).items():
            if not torch.is_tensor(value):
                raise ConfigurationError(
                    f"expert.optimizer_state: kept needs an optimizer of tensors, {trainer.args.optim} is none"
                )
            tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
    save_file(tensors, directory / OPTIMIZER)


def load_optimizer_state(trainer: DomainTrainer, directory: Path) -> None:
    """Start the optimizer with what another one ended with; its schedule starts anew.

    Raises:
        ConfigurationError: there is nothing to start with, or it is another model's.
    """
    path = directory / OPTIMIZER
    if not path.exists():
        raise ConfigurationError(
            f"{path} is missing: the seed was trained before expert.optimizer_state was kept; train it again in another output"
        )
    found: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, tensor in load_file(path).items():
        name, _, key = full_name.rpartition("/")
        found.setdefault(name, {})[key] = tensor
    optimizer = trainer.create_optimizer()
    parameters = dict(trainer.model.named_parameters())
    if missing := sorted(set(parameters) ^ set(found)):
        raise ConfigurationError(f"{path} is of another model: they differ in {missing[0]}")
    for name, state in found.items():
        on_device = {key: value.to(parameters[name].device) if value.dim() else value for key, value in state.items()}
        optimizer.state[parameters[name]] = on_device
