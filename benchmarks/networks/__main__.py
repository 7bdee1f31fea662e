"""Train the networks whose weights the project ships: ``python -m benchmarks.networks digits``, or another name."""

from __future__ import annotations

import argparse
import math
import platform
import time
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from benchmarks.networks.train import SHIPPED, Recipe, evaluate, save_weights, train


def main(arguments: list[str] | None = None) -> None:
    """Train one of the shipped networks and write its weights, printing progress."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("network", choices=tuple(SHIPPED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="passes over the examples; by default the recipe's own")
    parser.add_argument("--enough", type=float, help="stop once the validation accuracy is this; by default never")
    parser.add_argument("--data-dir", type=Path, help="folder of the Fashion-MNIST files")
    parser.add_argument("--download", action="store_true", help="allow Fashion-MNIST to be fetched")
    parser.add_argument("--output", type=Path, help="weights file to write; by default the shipped one")
    options = parser.parse_args(arguments)
    shipped = SHIPPED[options.network]
    data, output = shipped.data(options.data_dir, options.download), options.output or shipped.weights
    recipe = Recipe(**{**vars(shipped.recipe), "epochs": options.epochs or shipped.recipe.epochs})
    started, cpu = time.perf_counter(), time.process_time()
    facts = {"network": options.network, "seed": str(options.seed), "python": platform.python_version()}

    def report(epoch: int, model: nn.Module) -> bool:
        """Print and, for the long training, save; the validation examples alone decide about stopping."""
        if epoch != recipe.epochs and epoch % shipped.report_every:
            return False
        accuracy, loss = evaluate(model, data.validation)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch}: validation {accuracy:.2%}, cross-entropy {loss:.4f}, {seconds:.0f} s", flush=True)
        facts["epochs"] = f"{epoch}/{recipe.epochs}"
        save_weights(model, output, shipped.stored, **facts)
        return options.enough is not None and accuracy >= options.enough

    model = train(shipped.build, data.train, recipe, options.seed, report)
    facts["cpu_seconds"] = f"{time.process_time() - cpu:.0f}"
    model.load_state_dict(load_file(output))  # what is shipped may be rounded, and that is what the figures are of
    accuracy, loss = evaluate(model, data.test)
    save_weights(model, output, shipped.stored, **facts, test_accuracy=f"{accuracy:.4f}", test_loss=f"{loss:.4f}")
    bits = f" ({loss / math.log(2):.3f} bits per byte)" if options.network == "text-gpt" else ""
    print(f"test {accuracy:.2%}, cross-entropy {loss:.4f}{bits}, trained in {facts['cpu_seconds']} CPU s")
    print(f"{output} has {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
