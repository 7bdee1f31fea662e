"""Train the networks whose weights the project ships: ``python -m benchmarks.train digits``, ``fashion-mnist``, ...

One recipe for every network: SGD with Nesterov momentum, a one-cycle learning rate and light augmentation. The same
recipe trains the small float32 networks that compressed ones are compared with.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.architectures import DIGITS_WIDTH, ResNet20, digits_of_width, digits_width_within
from benchmarks.datasets import Dataset, Examples, digits, fashion_mnist

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"
DIGITS_WEIGHTS = WEIGHTS_FOLDER / "digits.safetensors"
FASHION_WEIGHTS = WEIGHTS_FOLDER / "fashion_mnist_resnet20.safetensors"
FASHION56_WEIGHTS = WEIGHTS_FOLDER / "fashion_mnist_resnet56.safetensors"
DIGITS_EPOCHS = 60


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the last, smaller batch of an epoch is left out.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of every parameter.
        shift: images are moved by up to so many pixels each way, the gap filled with background.
        flip: are images mirrored left to right half of the time?
        bfloat16: run forward and backward passes under bfloat16 autocast, with channels last; weights stay float32.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    shift: int = 0
    flip: bool = False
    bfloat16: bool = False


DIGITS_RECIPE = Recipe(epochs=DIGITS_EPOCHS, batch_size=64, learning_rate=0.1, weight_decay=5e-4, shift=1)
FASHION_RECIPE = Recipe(
    epochs=10, batch_size=128, learning_rate=0.2, weight_decay=5e-4, shift=2, flip=True, bfloat16=True
)
# Brief on purpose: what is wanted of it is a table of sixty groups, not a record.
FASHION56_RECIPE = Recipe(
    epochs=2, batch_size=128, learning_rate=0.1, weight_decay=5e-4, shift=2, flip=True, bfloat16=True
)


def train_digits(
    width: int = DIGITS_WIDTH, seed: int = 0, epochs: int = DIGITS_EPOCHS, data: Dataset | None = None
) -> nn.Module:
    """Train a digits network of that width; the same arguments give the same weights on the same machine.

    Args:
        width: channels of the first stage.
        seed: of the first weights, the order of the images and the augmentation; the split of the images is fixed.
        epochs: passes over the training images.
        data: the images, `benchmarks.datasets.digits()` by default.

    Returns:
        The trained network in eval mode, float32.

    Raises:
        ValueError: when width or epochs is below 1.
    """
    recipe = Recipe(**{**vars(DIGITS_RECIPE), "epochs": epochs})
    return train(lambda: digits_of_width(width), (data or digits()).train, recipe, seed)


def train_small_digits(byte_limit: int, seed: int = 0, epochs: int = DIGITS_EPOCHS) -> nn.Module:
    """Train the widest digits network whose float32 parameters and buffers take at most `byte_limit` bytes.

    Raises:
        ValueError: when not even the narrowest network fits.
    """
    return train_digits(digits_width_within(byte_limit), seed, epochs)


def train(
    build: Callable[[], nn.Module],
    examples: Examples,
    recipe: Recipe,
    seed: int,
    after_epoch: Callable[[int, nn.Module], bool] | None = None,
) -> nn.Module:
    """Train a fresh network on the examples.

    Args:
        build: makes the network, its weights drawn from torch's global generator, which is seeded for the call only.
        examples: images (N, C, H, W) and classes (N,).
        recipe: how to train.
        seed: of everything that is drawn.
        after_epoch: called with the number of epochs done and the network in eval mode; True ends the training.

    Returns:
        The trained network in eval mode, float32.

    Raises:
        ValueError: when the recipe has no epoch, or fewer examples than one batch were given.
    """
    if recipe.epochs < 1 or len(examples) < recipe.batch_size:
        raise ValueError(
            f"{recipe.epochs} epochs on {len(examples)} examples were asked for; at least 1 epoch and one batch of "
            f"{recipe.batch_size} examples are needed"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    generator = torch.Generator().manual_seed(seed)
    if recipe.bfloat16:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    steps = len(examples) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps * recipe.epochs, pct_start=0.3
    )
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        order = torch.randperm(len(examples), generator=generator)
        for indices in torch.split(order[: steps * recipe.batch_size], recipe.batch_size):
            batch = examples.select(indices)
            inputs = augment(batch.inputs, recipe, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                outputs = model(inputs)
            loss = functional.cross_entropy(outputs.float(), batch.targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        logger.debug("epoch %d of %d, last loss %.4f", epoch, recipe.epochs, loss.item())
        if after_epoch is not None and after_epoch(epoch, model):
            break
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Flip and shift images (N, C, H, W), each on its own, as the recipe says; the gap takes the darkest value."""
    count, channels, height, width = images.shape
    if recipe.flip:
        flipped = torch.rand(count, generator=generator) < 0.5
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
    if recipe.shift:
        margin = recipe.shift
        padded = functional.pad(images, (margin,) * 4, value=images.min().item())
        offsets = torch.randint(2 * margin + 1, (2, count, 1), generator=generator)
        rows = (offsets[0] + torch.arange(height)).view(count, 1, height, 1)
        columns = (offsets[1] + torch.arange(width)).view(count, 1, 1, width)
        examples = torch.arange(count).view(count, 1, 1, 1)
        images = padded[examples, torch.arange(channels).view(1, channels, 1, 1), rows, columns]
    return images.contiguous(memory_format=torch.channels_last) if recipe.bfloat16 else images


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, batch_size: int = 250) -> tuple[float, float]:
    """Top-1 accuracy, between 0 and 1, and mean cross-entropy of a network in eval mode, in float32."""
    correct, loss = 0, 0.0
    for inputs, targets in examples.batches(batch_size):
        logits = model(inputs)
        correct += int((logits.argmax(1) == targets).sum())
        loss += functional.cross_entropy(logits, targets, reduction="sum").item()
    return correct / len(examples), loss / len(examples)


def save_weights(model: nn.Module, path: Path, half: bool = False, **facts: str) -> None:
    """Write the state dict and, as metadata, the facts; the file appears whole or not at all.

    ``half`` stores float16, half the size; the network that is loaded is float32 all the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, partial, metadata=facts | ({"stored": "float16"} if half else {}))
    partial.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Train one of the shipped networks and write its weights, printing progress."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("network", choices=("digits", "fashion-mnist", "fashion-mnist-resnet56"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="passes over the images; by default the recipe's own")
    parser.add_argument("--enough", type=float, help="stop once the validation accuracy is this; by default never")
    parser.add_argument("--data-dir", type=Path, help="folder of the Fashion-MNIST files")
    parser.add_argument("--download", action="store_true", help="allow Fashion-MNIST to be fetched")
    parser.add_argument("--output", type=Path, help="weights file to write; by default the shipped one")
    options = parser.parse_args(arguments)
    if options.network == "digits":
        data, recipe, output = digits(), DIGITS_RECIPE, options.output or DIGITS_WEIGHTS
        build: Callable[[], nn.Module] = digits_of_width
    else:
        data, deep = fashion_mnist(options.data_dir, download=options.download), options.network.endswith("resnet56")
        recipe = FASHION56_RECIPE if deep else FASHION_RECIPE
        build = lambda: ResNet20(input_channels=1, blocks=9 if deep else 3)  # noqa: E731
        output = options.output or (FASHION56_WEIGHTS if deep else FASHION_WEIGHTS)
    recipe = Recipe(**{**vars(recipe), "epochs": options.epochs or recipe.epochs})
    started = time.perf_counter()

    def report(epoch: int, model: nn.Module) -> bool:
        """Print and, for the long training, save; the validation images alone decide about stopping."""
        last = epoch == recipe.epochs
        if not last and options.network == "digits" and epoch % 10:
            return False
        accuracy, loss = evaluate(model, data.validation)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch}: validation {accuracy:.2%}, cross-entropy {loss:.4f}, {seconds:.0f} s", flush=True)
        facts = {"network": options.network, "seed": str(options.seed), "epochs": f"{epoch}/{recipe.epochs}"}
        save_weights(model, output, half=options.network.endswith("resnet56"), **facts)
        return options.enough is not None and accuracy >= options.enough

    model = train(build, data.train, recipe, options.seed, report)
    accuracy, loss = evaluate(model, data.test)
    print(f"test {accuracy:.2%}, cross-entropy {loss:.4f}; {output} has {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
