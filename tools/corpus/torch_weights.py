"""Seeded random weights for PyTorch models that keep activations sane and every fold worth testing."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomize(model: nn.Module, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Fills `model` with random weights and sets it to evaluation mode.

    Convolutions and linear layers get truncated normals of standard deviation 1/sqrt(fan_in), norms get scales in
    [0.5, 1.5] and shifts of deviation 0.2, layer scales lie in [0.2, 1] (as after training, not at their tiny
    start value), and running statistics of batch norms are measured on noise and then perturbed, so that
    folding them is not the identity.

    Args:
        model: any model; changed in place.
        shape: input shape for one sample, batch axis included.
        seed: seed of all draws.

    Returns:
        The same model.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in done:
                    done.add(id(parameter))
                    _fill(module, name, parameter, generator)
        _measure_batch_norms(model, torch.randn(8, *shape[1:], generator=generator), generator)
    return model.train().eval()  # through train(): some models cache attention biases in evaluation mode


def _fill(module: nn.Module, name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    is_norm = isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm)) or "Norm" in type(module).__name__
    if is_norm and name == "weight":
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif name == "bias":
        parameter.normal_(0.0, 0.2 if is_norm else 0.1, generator=generator)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        fan_in = parameter[0].numel()
        parameter.normal_(0.0, 1.0, generator=generator).clamp_(-2.0, 2.0).mul_(fan_in**-0.5)
    elif "temperature" in name:
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif parameter.ndim <= 1 or "gamma" in name or "scale" in name:
        parameter.uniform_(0.2, 1.0, generator=generator)
    else:
        parameter.normal_(0.0, 0.4, generator=generator)


def _measure_batch_norms(model: nn.Module, noise: torch.Tensor, generator: torch.Generator) -> None:
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    model(noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        spread = norm.running_var.clamp(min=1e-3).sqrt()
        norm.running_mean.add_(0.1 * spread * torch.randn(spread.shape, generator=generator))
        factor = torch.empty_like(spread).uniform_(0.8, 1.25, generator=generator)
        norm.running_var.copy_(spread.square() * factor)
        norm.num_batches_tracked.zero_()
