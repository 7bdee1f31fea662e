"""Reading the shipped network and its examples."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from qubo_compress.example.network import ExampleCNN

BATCH_SIZE = 100
WEIGHT = "weight/"
"""Prefix of the state dict's arrays in the shipped file; the others are ``PART/inputs`` and ``PART/labels``."""
MEAN, DEVIATION = 0.2863, 0.3303
"""Of the training pixels between 0 and 1."""

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ExampleNetwork:
    """A trained network with its examples; batches are (inputs, labels), float32 (N, 1, 14, 14) and int64 (N,).

    Attributes:
        model: the trained :class:`~qubo_compress.example.ExampleCNN`, in eval mode, float32.
        calibration: 500 training examples, to measure with.
        validation: 500 examples that it was not trained on, to choose between plans.
        test: 1,000 examples of the test set, to score what was chosen.
    """

    model: ExampleCNN
    calibration: Batches
    validation: Batches
    test: Batches


def example_network() -> ExampleNetwork:
    """A small trained network with its examples, shipped with the package: nothing is fetched.

    A MobileNetV2 of 81,778 parameters (Sandler et al., 2018) for pictures of clothes: Fashion-MNIST (Xiao, Rasul and
    Vollgraf, 2017; MIT licence, copyright Zalando SE), averaged over 2 x 2 pixels. Each call reads it again, so that
    changing the model changes nobody else's.

    Example:
        >>> import qubo_compress as qc
        >>> network = qc.example_network()
        >>> inputs, labels = network.test[0]
        >>> tuple(inputs.shape), tuple(network.model(inputs).shape), len(network.test)
        ((100, 1, 14, 14), (100, 10), 10)
    """
    with files("qubo_compress.example").joinpath("example.npz").open("rb") as file, np.load(file) as arrays:
        model = ExampleCNN()
        model.load_state_dict(
            {name.removeprefix(WEIGHT): torch.from_numpy(arrays[name]) for name in arrays if name.startswith(WEIGHT)}
        )
        calibration, validation, test = (
            batches_of(arrays[f"{part}/inputs"], arrays[f"{part}/labels"])
            for part in ("calibration", "validation", "test")
        )
    return ExampleNetwork(model.eval(), calibration, validation, test)


def batches_of(pictures: np.ndarray, labels: np.ndarray) -> Batches:
    """Pictures (N, 14, 14) uint8 and labels (N,) uint8 as batches for the network."""
    inputs = (torch.from_numpy(pictures).float().unsqueeze(1) / 255.0 - MEAN) / DEVIATION
    targets = torch.from_numpy(labels).long()
    return list(zip(torch.split(inputs, BATCH_SIZE), torch.split(targets, BATCH_SIZE), strict=True))
