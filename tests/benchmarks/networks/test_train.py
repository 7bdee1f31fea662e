"""How the shipped networks are trained, and the files that training writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks import networks
from benchmarks.networks import __main__ as command
from benchmarks.networks import datasets, loading
from benchmarks.networks import train as training
from benchmarks.networks.architectures import DigitsNet
from benchmarks.networks.attention import ByteGPT


def facts_of(name: str) -> dict[str, str]:
    """What the training script wrote into the weights file of a network."""
    with safe_open(training.SHIPPED[name].weights, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("name", "smallest", "largest", "accuracy"),
    [("text-gpt", 2e6, 4e6, 0.4), ("fashion-mnist-vit", 5e5, 3e6, 0.75)],
)
def test_shipped_transformers_are_small_files_of_bfloat16_and_have_learned(
    name: str, smallest: float, largest: float, accuracy: float
) -> None:
    shipped = training.SHIPPED[name]
    if not shipped.weights.is_file():
        pytest.skip(f"{shipped.weights.name} is not there yet; run: python -m benchmarks.networks {name}")
    assert float(facts_of(name)["test_accuracy"]) > accuracy
    assert shipped.weights.stat().st_size < 8e6
    assert {tensor.dtype for tensor in load_file(shipped.weights).values()} == {torch.bfloat16}
    assert smallest <= sum(parameter.numel() for parameter in shipped.build().parameters()) <= largest


def test_adamw_learns_text_and_sees_only_so_many_examples() -> None:
    tokens = torch.arange(512).remainder(4).view(64, 8)
    recipe = training.Recipe(epochs=8, batch_size=4, learning_rate=1e-2, weight_decay=0.0, adamw=True, examples=16)
    seen = []

    class Counted(ByteGPT):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(len(inputs))
            return super().forward(inputs)

    examples = datasets.Examples(tokens, (tokens + 1).remainder(4))
    model = training.train(lambda: Counted(width=16, depth=1, heads=2, context=8), examples, recipe, seed=0)
    assert sum(seen) == 8 * 16
    accuracy, loss = training.evaluate(model, examples)
    assert accuracy == 1.0 and loss < math.log(256) / 2


def test_training_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (networks.train_digits(width=2, seed=seed, epochs=1) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("linear.weight"), other.get_parameter("linear.weight"))
    assert not first.training


def test_small_network_learns_within_its_bytes() -> None:
    model = networks.train_small_digits(9_000, epochs=10)
    assert networks.float32_bytes(model) <= 9_000
    accuracy, _ = networks.accuracy_and_loss(model, networks.load("digits").test)
    assert accuracy > 0.8


def test_training_without_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 epoch"):
        networks.train_digits(width=2, epochs=0)


def test_augmentation_moves_whole_images() -> None:
    recipe = training.Recipe(epochs=1, batch_size=1, learning_rate=0.1, weight_decay=0.0, shift=1, flip=True)
    image = torch.zeros(200, 1, 5, 5)
    image[:, :, 1:4, 2] = 1.0
    moved = training.augment(image, recipe, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.full((200,), 3.0))
    assert len({picture.numpy().tobytes() for picture in moved}) == 9


def test_script_trains_and_writes_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "weights" / "digits.safetensors"
    command.main(["digits", "--epochs", "1", "--output", str(output)])
    assert output.is_file() and not output.with_suffix(".partial").exists()
    accuracy, loss = networks.accuracy_and_loss(
        loading._filled(DigitsNet(), output, "digits"), networks.load("digits").test
    )
    with safe_open(output, "pt") as file:
        facts = file.metadata()
    assert facts["test_accuracy"] == f"{accuracy:.4f}" and float(facts["test_loss"]) == pytest.approx(loss, abs=1e-3)
    assert f"test {accuracy:.2%}" in capsys.readouterr().out and facts["epochs"] == "1/1"
