"""Names of modules that hold what no terminal, page or file should be given as it is."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress._internal.text import printable
from qubo_compress.errors import QuboCompressError
from qubo_compress.report.terminal import print_summary

NAMES = ("a\x1b[31m", "b\ud800", "c\x00\u202e")


class Named(nn.Module):
    """Layers and a buffer under names of all these kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in NAMES:
            self.add_module(name, nn.Linear(20, 20))
        self.register_buffer("kept" + "".join(NAMES), torch.arange(3))

    def forward(self, inputs: Tensor) -> Tensor:
        for name in NAMES:
            inputs = getattr(self, name)(torch.relu(inputs))
        return inputs


@pytest.fixture(scope="module")
def result() -> Any:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(32, 20, generator=generator), torch.arange(32) % 20)]
    return qc.compress(
        Named().eval(), data, qc.Budget(ratio=3), menu=qc.Menu(bits=(2, 4), sparsity=(0.0,)), solver="greedy",
        progress=False, time_limit=1.0,
    )  # fmt: skip


def is_clean(text: str) -> bool:
    text.encode()
    return not set("\x1b\x00\u202e") & set(text)


def test_the_terminal_shows_them_written_out(result: Any) -> None:
    stream = io.StringIO()
    print_summary(result, Console(file=stream, width=150))
    assert is_clean(stream.getvalue())
    assert r"a\x1b[31m.weight" in stream.getvalue() and r"b\ud800.weight" in stream.getvalue()


def test_pages_and_pictures_are_well_formed(result: Any, tmp_path: Path) -> None:
    text = result.report(tmp_path / "report.html").read_text()
    assert is_clean(text) and r"c\x00\u202e.weight" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) > 3
    for picture in pictures:
        minidom.parseString(picture)


def test_files_give_back_every_name(result: Any, tmp_path: Path) -> None:
    result.save(tmp_path / "net.safetensors")
    again = qc.load(tmp_path / "net.safetensors", Named())
    assert list(again.state_dict()) == list(result.model.state_dict())
    for one, other in zip(again.state_dict().values(), result.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    result.plan.save(tmp_path / "plan")
    assert qc.Plan.load(tmp_path / "plan").choices == result.plan.choices
    problem = result.table.problem(qc.Budget(ratio=3))
    problem.save(tmp_path / "problem.npz")
    assert qc.ChoiceProblem.load(tmp_path / "problem.npz").group_names == problem.group_names


def test_messages_of_errors_can_be_printed(result: Any) -> None:
    with pytest.raises(QuboCompressError) as raised:
        result.table.pin("weight of \x1b[31m", "keep")
    assert is_clean(str(raised.value)) and r"'weight of \x1b[31m'" in str(raised.value)


def test_spaces_and_line_ends_are_kept() -> None:
    assert printable("one\u202ftwo\nthree\u00a0ä漢") == "one\u202ftwo\nthree\u00a0ä漢"
    assert printable("tab\t, bell\a") == r"tab\t, bell\x07"
