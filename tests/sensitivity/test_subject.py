"""What metrics are given, and metrics that were written for 0.4."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metric import metrics
from qubo_compress.sensitivity.preparation import prepared
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.sensitivity.subject import Subject
from qubo_compress.testing import check_metric

MENU = qc.Menu(["keep", "quantize(bits=2)", "quantize(bits=4)"])


def older() -> type:
    """A new class every time: it is brought up to date once."""

    @dataclass(frozen=True)
    class Squares:
        """As it was written for 0.4, without a base class."""

        metric_name: ClassVar[str] = "squares"
        knows_divergence: ClassVar[bool] = False

        def evaluations(self, task: Any) -> float:
            return float(task.offsets[-1])

        def measure(self, task: Any) -> qc.sensitivity.MetricResult:
            values = []
            for group in range(len(task.layout.groups)):
                kept = [task.part(member) for member in task.layout.groups[group].members]
                for stored in task.packed(group):
                    pairs = zip(stored.tensors(), kept, strict=True)
                    values.append(sum(float((value - part).double().square().sum()) for value, part in pairs))
                    task.advance(1.0)
            assert [len(names) for names in task.choices] == np.diff(task.offsets).tolist()
            assert task.base is not None and task.seed == 0 and len(task.outputs) == len(list(task.slices()))
            return qc.sensitivity.MetricResult(np.array(values))

    return Squares


def test_a_metric_of_the_last_release_works_and_warns(sample: Any) -> None:
    found = sample("perceptron")
    given = {"menu": MENU, "progress": False, "shrinkage": 0.0, "interactions": 1.0}
    with pytest.warns(DeprecationWarning) as told:
        table = qc.measure(found.model, found.batches, metric=older()(), **given)
    said = [str(warning.message) for warning in told]
    assert any("write class Squares(Metric)" in text for text in said)
    assert any("part is now choices.part" in text for text in said) and any("choices.packed" in text for text in said)
    assert np.allclose(table.linear, qc.measure(found.model, found.batches, metric="magnitude", **given).linear)
    with pytest.raises(errors.InvalidMenu, match="measures no divergences"):
        qc.measure(found.model, found.batches, metric=older()(), **{**given, "shrinkage": 1.0})


def test_a_registered_metric_of_the_last_release_conforms() -> None:
    try:
        with pytest.warns(DeprecationWarning, match="Squares names no base class"):
            qc.sensitivity.register(older())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            check_metric("squares")
    finally:
        del metrics._entries["squares"]


@pytest.mark.parametrize("module", ["sensitivity", "sensitivity.metric"])
def test_the_old_name_of_the_subject_is_still_there(module: str) -> None:
    with pytest.warns(DeprecationWarning, match="MeasureTask is now"):
        assert importlib.import_module(f"qubo_compress.{module}").MeasureTask is Subject
    with pytest.raises(AttributeError, match="MeasureTasks"):
        importlib.import_module(f"qubo_compress.{module}").MeasureTasks  # noqa: B018


def test_a_subject_is_not_changed_by_what_measures_it(sample: Any) -> None:
    found = sample("perceptron")
    specimen = Specimen.of(found.model, found.batches, Measurement(MENU, progress=False)).private()
    with torch.no_grad():
        subject = prepared(specimen)
        fields = [field.name for field in dataclasses.fields(subject)]
        before = [getattr(subject, name) for name in fields]
        qc.sensitivity.metric.make_metric("gauss-newton").measure(subject)
    assert len(fields) <= 9 and all(getattr(subject, n) is value for n, value in zip(fields, before, strict=True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        subject.loss = None  # type: ignore[misc]
    with pytest.raises(AttributeError, match="no attribute 'packet'"):
        subject.packet  # noqa: B018


def test_choices_from_data_are_refused_until_they_are_made(sample: Any) -> None:
    found = sample("perceptron")
    menu = qc.Menu(["keep", "compensate(bits=4)"])
    specimen = Specimen.of(found.model, found.batches, Measurement(menu, progress=False)).private()
    with torch.no_grad():
        subject = prepared(specimen)
        with pytest.raises(qc.QuboCompressError, match="looks at calibration data"):
            subject.choices.packed(0)
        subject.choices.make_from_data(0, subject.cache)
        assert len(subject.choices.packed(0)) == 2 == len(subject.choices[0])
    assert set(subject.choices.payloads) == {("0.weight", "compensate(bits=4)")}
