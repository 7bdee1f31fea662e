"""A Lightning module, trained by Lightning and then compressed: python examples/lightning_module.py.

Needs ``pip install lightning``. A LightningModule is a torch.nn.Module, so it is compressed as it is: no wrapper, and
the data loaders of training are the calibration batches.
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import qubo_compress as qc


def loader_of(batches: list[tuple[Tensor, Tensor]], shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """The examples of some batches behind a DataLoader."""
    inputs, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return DataLoader(TensorDataset(inputs, labels), batch_size=50, shuffle=shuffle)


def main() -> None:
    """Train, compress, and say what was gained and lost."""
    try:
        import lightning
    except ImportError:
        print("skipped: lightning is not installed; run: pip install lightning")
        return

    class Classifier(lightning.LightningModule):
        """A perceptron for small pictures."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
            self.head = nn.Linear(64, 10)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.body(inputs))
            return outputs

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            inputs, labels = batch
            return nn.functional.cross_entropy(self(inputs), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=2e-3)

    lightning.seed_everything(0, verbose=False)
    examples, network = qc.example_network(), Classifier()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(network, loader_of([*examples.calibration, *examples.validation], shuffle=True))
    network.eval()

    # Measuring reads the examples in order: no shuffling here.
    calibration, validation = loader_of(examples.calibration), loader_of(examples.validation)
    result = qc.compress(network, calibration, qc.Budget(ratio=8), validation=validation)

    found = qc.audit(network, result.model, loader_of(examples.test))
    plan = result.plan
    print(f"gained: {plan.original_bytes:,} bytes became {plan.bytes:,}, {plan.ratio:.1f} times smaller")
    print(
        f"lost: accuracy {found.accuracy_before:.1%} became {found.accuracy_after:.1%} on {found.examples:,} examples"
    )
    print(f"{found.harmful} right answers were lost, {found.repaired} wrong ones became right")


if __name__ == "__main__":
    main()
