"""What was removed, as text from elsewhere: hooks that no network has are refused."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
import torch
from torch import nn

from qubo_compress.errors import InvalidModel, WrongModel
from qubo_compress.network.channels.removal import HookedModule, KeptIndices, Removal
from qubo_compress.network.channels.removal_file import removals_from

SIDE = ["1", 1, 4, "07"]


def packed(hooked: list[object]) -> str:
    said = [{"kept": [], "hooked": hooked, "numbers": []}]
    return base64.b64encode(zlib.compress(json.dumps(said).encode())).decode()


def test_hooks_are_read() -> None:
    side = KeptIndices("1", 1, 4, (0, 1, 2))
    assert removals_from(packed([["1", SIDE, None]])) == (Removal(hooked=(HookedModule("1", side, None),)),)


@pytest.mark.parametrize(
    "hooked",
    [
        [["1", None, None]],
        [["1", ["1", 1, 4, "0f"], None]],
        [["1", None, ["1", 0, 4, "07"]]],
        [["1", None, ["1", 8, 4, "07"]]],
        [["1", SIDE, None], ["1", None, SIDE]],
    ],
    ids=["nothing", "all stay", "examples", "axis", "twice"],
)
def test_hooks_that_remove_nothing_or_too_much_are_refused(hooked: list[object]) -> None:
    with pytest.raises(ValueError, match="hooks"):
        removals_from(packed(hooked))


def test_hooks_of_another_network_are_refused() -> None:
    side = KeptIndices("", 1, 4, (0, 2))
    with pytest.raises(WrongModel, match="modules without tensors, and 0 of"):
        Removal(hooked=(HookedModule("0", side, None),)).applied(nn.Sequential(nn.Linear(4, 2)))
    for before, after in ((side, None), (None, side)):
        small = Removal(hooked=(HookedModule("0", before, after),)).applied(nn.Sequential(nn.ReLU()))
        assert small(torch.ones(3, 2 if before else 3)).shape == (3, 4 if before else 2)
        for strange in (torch.ones(3, 1), torch.ones(3)):
            with pytest.raises(InvalidModel, match="of another network"):
                small(strange)
