"""An encoder of Hugging Face's transformers: python examples/hugging_face_encoder.py.

Needs ``pip install transformers``. Nothing is downloaded: a small BERT is built from its configuration, learns a real
task for a moment, is saved to a folder and loaded from it, as you would load yours. The task: is a line of Python's
standard library code, or prose of a docstring or a comment? Letters are the tokens.
"""

from __future__ import annotations

import ast
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qubo_compress as qc

LENGTH, PADDING = 48, 0
Batches = list[tuple[dict[str, Tensor], Tensor]]


def lines_of_python(most: int) -> list[tuple[str, int]]:
    """(line, 1 for code and 0 for prose) from modules of the standard library, as many of both."""
    found: dict[str, int] = {}
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        prose = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                prose |= {line.strip() for line in (ast.get_docstring(node) or "").splitlines()}
        for line in (line.strip() for line in text.splitlines()):
            if len(line) > 20:
                found[line.lstrip("# ")] = 0 if line in prose or line.startswith("#") else 1
    drawn = random.Random(0)
    kinds = [[(line, kind) for line, kind in found.items() if kind == wanted] for wanted in (0, 1)]
    chosen = [pair for kind in kinds for pair in drawn.sample(kind, min(most // 2, len(kind)))]
    drawn.shuffle(chosen)
    return chosen


def batches_of(lines: list[tuple[str, int]], size: int = 100) -> Batches:
    """Batches as the encoder takes them."""
    codes = [[min(ord(letter), 127) for letter in line[:LENGTH]] for line, _ in lines]
    tokens = torch.tensor([code + [PADDING] * (LENGTH - len(code)) for code in codes])
    inputs = {"input_ids": tokens, "attention_mask": (tokens != PADDING).long()}
    labels = torch.tensor([kind for _, kind in lines])
    starts = range(0, len(lines), size)
    return [({name: held[a : a + size] for name, held in inputs.items()}, labels[a : a + size]) for a in starts]


def train(network: nn.Module, batches: Batches, epochs: int) -> None:
    """Train for some passes over the batches."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(**inputs).logits, labels).backward()
            optimizer.step()
    network.eval()


def small_bert(transformers: Any) -> nn.Module:
    """A BERT with two layers, from its configuration."""
    config = transformers.BertConfig(
        vocab_size=128, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        max_position_embeddings=LENGTH, num_labels=2, pad_token_id=PADDING,
    )  # fmt: skip
    network: nn.Module = transformers.BertForSequenceClassification(config)
    return network


def main() -> None:
    """Train, save and load, compress, and say what was gained and lost."""
    try:
        import transformers
    except ImportError:
        print("skipped: transformers is not installed; run: pip install transformers")
        return
    torch.manual_seed(0)
    lines = lines_of_python(2600)
    learnt, validation, test = batches_of(lines[:2000]), batches_of(lines[2000:2300]), batches_of(lines[2300:])
    network = small_bert(transformers)
    train(network, learnt, epochs=3)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        network = transformers.AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()

    menu = qc.Menu(bits=(2, 3, 4, 8), sparsity=(0.0,))
    result = qc.compress(network, learnt, qc.Budget(ratio=8), validation=validation, menu=menu, max_examples=200)

    audit = qc.audit(network, result.model, test)
    plan = result.plan
    print(f"transformers {transformers.__version__}, BERT with {plan.parameters:,} parameters")
    print(f"gained: {plan.original_bytes:,} bytes became {plan.bytes:,}, {plan.ratio:.1f} times smaller")
    print(f"lost: accuracy {audit.accuracy_before:.1%} became {audit.accuracy_after:.1%} on {audit.examples:,} lines")
    print(f"{audit.harmful} right answers were lost, {audit.repaired} wrong ones became right")


if __name__ == "__main__":
    main()
