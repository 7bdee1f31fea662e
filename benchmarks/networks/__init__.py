"""The trained networks of benchmarks, demo and tests, each with its examples: ``load("digits")``."""

from benchmarks.networks.architectures import digits_of_width, digits_width_within, float32_bytes
from benchmarks.networks.datasets import NetworkUnavailable
from benchmarks.networks.loading import (
    BATCH_SIZE,
    Batches,
    Network,
    UnknownNetwork,
    accuracy_and_loss,
    channels_last,
    first,
    load,
    names,
)
from benchmarks.networks.train import train_digits, train_small_digits

__all__ = [
    "BATCH_SIZE",
    "Batches",
    "Network",
    "NetworkUnavailable",
    "UnknownNetwork",
    "accuracy_and_loss",
    "channels_last",
    "digits_of_width",
    "digits_width_within",
    "first",
    "float32_bytes",
    "load",
    "names",
    "train_digits",
    "train_small_digits",
]
