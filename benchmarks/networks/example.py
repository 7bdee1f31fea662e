"""Train the network that the package ships, and write it with its examples.

    python -m benchmarks.networks.example [--seed 0] [--out qubo_compress/example/example.npz]

Two CPU minutes. The same seed gives the same network on the same machine.

Needs Fashion-MNIST (``apt install dataset-fashion-mnist``). The pictures are averaged over 2 x 2 pixels and kept as
bytes, exactly as they are shipped, before the network is trained on them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from benchmarks.networks.datasets import FASHION_DEVIATION, FASHION_MEAN, Examples, fashion_mnist
from benchmarks.networks.train import Recipe, evaluate, save_weights, train
from benchmarks.study import command_line
from qubo_compress.example import ExampleCNN
from qubo_compress.example.examples import WEIGHT, batches_of

TRAINED_ON = 20_000
RECIPE = Recipe(epochs=8, batch_size=128, learning_rate=0.1, weight_decay=2e-4, shift=1, flip=True)
COUNTS = {"calibration": 500, "validation": 500, "test": 1_000}
SHIPPED = Path("qubo_compress/example/example.npz")
TRAINED = Path("out/example_networks")


def small_pictures(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 14, 14) uint8, each pixel the mean of four, and their labels (N,) uint8."""
    pixels = functional.avg_pool2d((examples.inputs * FASHION_DEVIATION + FASHION_MEAN) * 255.0, 2).squeeze(1)
    return pixels.round().clamp(0, 255).to(torch.uint8).numpy(), examples.targets.to(torch.uint8).numpy()


def as_the_network_sees_them(pictures: np.ndarray, labels: np.ndarray) -> Examples:
    """The same pictures, normalised by the package's own function."""
    inputs, targets = zip(*batches_of(pictures, labels), strict=True)
    return Examples(torch.cat(inputs), torch.cat(targets))


def example_data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The first training pictures, and all for validation and test, small."""
    data = fashion_mnist()
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    small = {part: small_pictures(examples) for part, examples in parts.items()}
    return small | {"train": tuple(array[:TRAINED_ON] for array in small["train"])}


def train_example(training: Examples, seed: int = 0, epochs: int = RECIPE.epochs) -> nn.Module:
    """Train one network; the same arguments give the same weights on the same machine."""
    recipe = Recipe(**{**vars(RECIPE), "epochs": epochs})
    return train(ExampleCNN, training, recipe, seed)


def shipped_arrays(
    model: nn.Module, data: dict[str, tuple[np.ndarray, np.ndarray]], counts: dict[str, int] = COUNTS
) -> dict[str, np.ndarray]:
    """The arrays of the shipped file: the state dict, and the first so many examples of every part."""
    arrays = {WEIGHT + name: _numpy(tensor) for name, tensor in model.state_dict().items()}
    for part, count in counts.items():
        pictures, labels = data["train" if part == "calibration" else part]
        arrays |= {f"{part}/inputs": pictures[:count], f"{part}/labels": labels[:count]}
    return arrays


def example_of_seed(seed: int, folder: Path = TRAINED) -> qc.ExampleNetwork:
    """The example network trained with another seed, or the shipped one for seed 0, with all 10,000 test pictures.

    It is trained once and kept in the folder. Calibration and validation examples are the shipped ones.
    """
    data, shipped = example_data(), qc.example_network()
    model = shipped.model
    if seed:
        path = folder / f"seed_{seed}.safetensors"
        if not path.is_file():
            save_weights(train_example(as_the_network_sees_them(*data["train"]), seed), path)
        model = ExampleCNN().eval()
        model.load_state_dict(load_file(path))
    return qc.ExampleNetwork(model, shipped.calibration, shipped.validation, batches_of(*data["test"]))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def main() -> None:
    """Command line."""
    options = command_line(__doc__, seed=0, epochs=RECIPE.epochs, out=SHIPPED)
    data = example_data()
    model = train_example(as_the_network_sees_them(*data["train"]), options.seed, options.epochs)
    accuracy, loss = evaluate(model, as_the_network_sees_them(*data["test"]))
    np.savez_compressed(options.out, **shipped_arrays(model, data))
    print(f"test accuracy {100 * accuracy:.2f} % of 10,000, loss {loss:.4f}; {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
