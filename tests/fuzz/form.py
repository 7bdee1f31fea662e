"""What a format is to the fuzzers, and how files are made of samples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qubo_compress import errors
from tests.fuzz.damage import Edit, damaged, random_edits

Crafter = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: for the table of counts.
        samples: whole files.
        read: path -> what was read, in comparable form.
        crafted: files by somebody who knows the format, with right checksums.
        checked: whether the format has a checksum: without one, damage may go unnoticed.
        name_of_file: which the reader may look at.
        refusals: the errors that a file of this format may be refused with.
        every: only in one round of so many, where reading takes long.
        named: whether refusals name the file.
        read_as: what the samples are read as, where that need not be tried.
    """

    name: str
    samples: tuple[bytes, ...]
    read: Callable[[Path], object]
    crafted: Crafter
    checked: bool = True
    name_of_file: str = "file"
    refusals: tuple[type[Exception], ...] = (errors.CorruptArtifact,)
    every: int = 1
    named: bool = True
    read_as: object = None

    def known(self, folder: Path) -> set[object]:
        """What the samples are read as."""
        if self.read_as is not None:
            return {self.read_as}
        found = set()
        for sample in self.samples:
            (folder / self.name_of_file).write_bytes(sample)
            found.add(self.read(folder / self.name_of_file))
        return found


def digest_of(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def hostile_value(chance: random.Random) -> Any:
    return chance.choice(
        (
            None,
            True,
            -1,
            0,
            2**70,
            1.5,
            float("nan"),
            "",
            "keep",
            "\ud800",
            [],
            [1],
            {},
            {"a": 1},
            [[]],
            "x" * 10**5,
            [None],
        )
    )


def replaced_within(chance: random.Random, value: Any) -> Any:
    """JSON with one value somewhere within replaced by a hostile one."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.2:
        return hostile_value(chance)
    changed = dict(value) if isinstance(value, dict) else list(value)
    key = chance.choice(tuple(changed)) if isinstance(changed, dict) else chance.randrange(len(changed))
    changed[key] = replaced_within(chance, changed[key])
    return changed


def made(form: Format, seed: int) -> tuple[bytes, bool]:
    """One file of a format, damaged or crafted, and whether somebody who knows the format made it."""
    chance = random.Random(f"{form.name} {seed}")
    sample, other = chance.choice(form.samples), chance.choice(form.samples)
    if chance.random() < 0.3:
        return form.crafted(chance, sample), True
    edits: list[Edit] = random_edits(chance)
    return damaged(sample, edits, other), False
