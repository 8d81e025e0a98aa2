"""The digits network as an ``nn.Module``, exported with a free number of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.zoo import digits
from torch import nn

TOLERANCE = 1e-5
"""FP32 throughout; only the order of the sums differs."""


def network() -> Any:
    """image FP32 [n,1,8,8] to probabilities FP32 [n,10], with the shipped weights."""
    made = nn.Sequential()
    for name, layer in (
        ("conv1", nn.Conv2d(1, 16, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(16, 32, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("flat", nn.Flatten()),
        ("dense1", nn.Linear(512, 64)),
        ("relu3", nn.ReLU()),
        ("dense2", nn.Linear(64, 10)),
        ("softmax", nn.Softmax(1)),
    ):
        made.add_module(name, layer)
    made.load_state_dict({k: torch.from_numpy(v) for k, v in digits.parameters().items()})
    return made.eval()


def exported() -> Any:
    example = torch.zeros(2, 1, 8, 8)
    return torch.export.export(network(), (example,), dynamic_shapes=({0: torch.export.Dim("n")},))


def write(version: Path) -> str:
    torch.export.save(exported(), version / "model.pt2")
    return digits.config("pytorch")
