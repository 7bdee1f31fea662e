"""The code on the front page runs, in its order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_python_blocks_of_the_readme_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    result = namespace["result"]
    assert result.plan.ratio >= 10
    assert (tmp_path / "out" / "digits.safetensors").stat().st_size == result.plan.bytes == namespace["size"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
