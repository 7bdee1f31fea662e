"""The pictures of the report."""

from __future__ import annotations

from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import front as front_of
from qubo_compress.report import pictures


def test_pictures_are_images_and_leave_matplotlib_alone(result: CompressionResult) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    front = front_of.find_front(result, 0.05)
    for draw in (pictures.layers, pictures.prediction, pictures.interactions, pictures.all_choices, pictures.trace):
        assert (draw(result) or b"").lstrip().startswith(b"<?xml"), draw.__name__
    assert (pictures.layers(result, "png") or b"").startswith(b"\x89PNG")
    assert pictures.pareto_front(result, front) is not None
    assert pictures.pareto_front(result, front.points, "png") is not None
    assert pictures.pareto_front(result, ()) is None
    assert dict(mpl.rcParams) == before


def test_long_names_are_shortened_in_the_middle() -> None:
    assert pictures.short("a" * 50, 11) == "aaaaa…aaaaa"
    assert pictures.short("x$y$") == r"x\$y\$"
