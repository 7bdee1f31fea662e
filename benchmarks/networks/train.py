"""How the networks are trained whose weights the project ships.

Convolutional networks are trained by SGD with Nesterov momentum, transformers by AdamW with clipped gradients; both
with a one-cycle learning rate and light augmentation. The same recipe trains the small float32 networks that compressed
ones are compared with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.architectures import DIGITS_WIDTH, ResNet20, digits_of_width, digits_width_within
from benchmarks.networks.attention import ByteGPT, VisionTransformer
from benchmarks.networks.datasets import Dataset, Examples, digits, fashion_mnist
from benchmarks.networks.text import python_text

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"
DIGITS_WEIGHTS = WEIGHTS_FOLDER / "digits.safetensors"
FASHION_WEIGHTS = WEIGHTS_FOLDER / "fashion_mnist_resnet20.safetensors"
FASHION56_WEIGHTS = WEIGHTS_FOLDER / "fashion_mnist_resnet56.safetensors"
VIT_WEIGHTS = WEIGHTS_FOLDER / "fashion_mnist_vit.safetensors"
GPT_WEIGHTS = WEIGHTS_FOLDER / "text_gpt.safetensors"
DIGITS_EPOCHS = 60


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the last, smaller batch of an epoch is left out.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of every parameter.
        shift: images are moved by up to this many pixels each way, the gap filled with background.
        flip: are images mirrored left to right half of the time?
        bfloat16: run forward and backward passes under bfloat16 autocast, with channels last; weights stay float32.
        adamw: use AdamW and clip the gradient to length 1, as transformers need; else SGD with Nesterov momentum.
        warmup: part of the steps in which the learning rate rises.
        examples: per epoch, redrawn each time; all by default.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    shift: int = 0
    flip: bool = False
    bfloat16: bool = False
    adamw: bool = False
    warmup: float = 0.3
    examples: int | None = None


DIGITS_RECIPE = Recipe(epochs=DIGITS_EPOCHS, batch_size=64, learning_rate=0.1, weight_decay=5e-4, shift=1)
FASHION_RECIPE = Recipe(
    epochs=10, batch_size=128, learning_rate=0.2, weight_decay=5e-4, shift=2, flip=True, bfloat16=True
)
# Brief on purpose: what is wanted of it is a table of sixty groups, not a record.
FASHION56_RECIPE = Recipe(
    epochs=2, batch_size=128, learning_rate=0.1, weight_decay=5e-4, shift=2, flip=True, bfloat16=True
)


VIT_RECIPE = Recipe(
    epochs=4, batch_size=64, learning_rate=1e-3, weight_decay=0.05, shift=1, flip=True, adamw=True, warmup=0.1
)
# Four epochs of 2,000 windows make a million bytes, a ninth of the text: enough for a network that has learned.
GPT_RECIPE = Recipe(
    epochs=4, batch_size=8, learning_rate=1.5e-3, weight_decay=0.05, adamw=True, warmup=0.1, examples=2_000
)


@dataclass(frozen=True)
class Shipped:
    """A network whose weights the project ships.

    Attributes:
        build: makes the network with fresh weights.
        data: (data folder or None, may download) -> its examples.
        recipe: how it is trained.
        weights: the file.
        stored: floating-point type of the file; the loaded network is float32 in any case.
        report_every: epochs between two looks at the validation examples.
    """

    build: Callable[[], nn.Module]
    data: Callable[[Path | None, bool], Dataset]
    recipe: Recipe
    weights: Path
    stored: torch.dtype = torch.float32
    report_every: int = 1


def _fashion(data_dir: Path | None, download: bool) -> Dataset:
    """Fashion-MNIST from wherever it is."""
    return fashion_mnist(data_dir, download=download)


SHIPPED = {
    "digits": Shipped(digits_of_width, lambda *_: digits(), DIGITS_RECIPE, DIGITS_WEIGHTS, report_every=10),
    "fashion-mnist": Shipped(lambda: ResNet20(input_channels=1), _fashion, FASHION_RECIPE, FASHION_WEIGHTS),
    "fashion-mnist-resnet56": Shipped(
        lambda: ResNet20(input_channels=1, blocks=9), _fashion, FASHION56_RECIPE, FASHION56_WEIGHTS, torch.float16
    ),
    "fashion-mnist-vit": Shipped(VisionTransformer, _fashion, VIT_RECIPE, VIT_WEIGHTS, torch.bfloat16),
    "text-gpt": Shipped(ByteGPT, lambda *_: python_text(), GPT_RECIPE, GPT_WEIGHTS, torch.bfloat16, 2),
}
"""By the name that `benchmarks.networks.load` knows them under."""


def train_digits(
    width: int = DIGITS_WIDTH, seed: int = 0, epochs: int = DIGITS_EPOCHS, data: Dataset | None = None
) -> nn.Module:
    """Train a digits network of that width; the same arguments give the same weights on the same machine.

    Args:
        width: channels of the first stage.
        seed: of the first weights, the order of the images and the augmentation; the split of the images is fixed.
        epochs: passes over the training images.
        data: the images, `benchmarks.networks.datasets.digits()` by default.

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
        examples: images (N, C, H, W) and classes (N,), or tokens (N, T) and the tokens that follow (N, T).
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
    optimizer = _optimizer(model, recipe)
    steps = min(len(examples), recipe.examples or len(examples)) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps * recipe.epochs, pct_start=recipe.warmup
    )
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        order = torch.randperm(len(examples), generator=generator)
        for indices in torch.split(order[: steps * recipe.batch_size], recipe.batch_size):
            batch = examples.select(indices)
            inputs = augment(batch.inputs, recipe, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                outputs = model(inputs)
            loss = _cross_entropy(outputs.float(), batch.targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.adamw:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        logger.debug("epoch %d of %d, last loss %.4f", epoch, recipe.epochs, loss.item())
        if after_epoch is not None and after_epoch(epoch, model):
            break
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of the recipe."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.adamw:
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True)


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits (N, C) and classes (N,), or (N, T, V) and (N, T); a mean is over all targets."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Flip and shift images (N, C, H, W), each on its own, as the recipe says; the gap takes the darkest value.

    Tokens (N, T) come back as they are.
    """
    if images.ndim != 4:
        return images
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
    """Top-1 accuracy, between 0 and 1, and mean cross-entropy of a network in eval mode, in float32.

    Means over the targets: over images, or over the tokens of all sequences.
    """
    correct, loss = 0, 0.0
    for inputs, targets in examples.batches(batch_size):
        logits = model(inputs)
        correct += int((logits.argmax(-1) == targets).sum())
        loss += _cross_entropy(logits, targets, reduction="sum").item()
    return correct / examples.targets.numel(), loss / examples.targets.numel()


def save_weights(model: nn.Module, path: Path, stored: torch.dtype = torch.float32, **facts: str) -> None:
    """Write the state dict and, as metadata, the facts; the file appears whole or not at all.

    ``stored`` may be a smaller type than float32; the loaded network is float32 in any case.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        name: (tensor.to(stored) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, partial, metadata=facts | {"stored": str(stored).removeprefix("torch.")})
    partial.replace(path)
