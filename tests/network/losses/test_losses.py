"""Losses: gradients and Hessian roots against automatic differentiation, probes against the Hessian itself."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qubo_compress.errors import InvalidBatches, InvalidModel
from qubo_compress.network.losses import custom as custom_loss
from qubo_compress.network.losses.classification import Loss, make_loss
from qubo_compress.network.losses.custom import CallableLoss, lanczos_root

ROWS, COLUMNS = 3, 4


def focal(outputs: Tensor, targets: Tensor | None) -> Tensor:
    assert targets is not None
    own = outputs.softmax(-1).gather(1, targets[:, None])[:, 0]
    return -((1 - own) ** 2) * own.log()


def smooth(outputs: Tensor, targets: Tensor | None) -> Tensor:
    return torch.log1p(outputs.square()).sum(-1) + outputs.prod(-1)


def flat(outputs: Tensor, targets: Tensor | None) -> Tensor:
    return outputs.sum(-1)


def cases() -> list[tuple[str, Loss, Tensor | None]]:
    classes = torch.tensor([0, 3, 1])
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(ROWS, COLUMNS, generator=generator)
    return [
        ("cross-entropy", make_loss("cross-entropy"), classes),
        ("probabilities", make_loss("cross-entropy"), shares / shares.sum(1, keepdim=True)),
        ("kl", make_loss("kl"), None),
        ("binary", make_loss("binary-cross-entropy"), shares),
        ("squared", make_loss("squared-error"), 3 * shares),
        ("squared without targets", make_loss("squared-error"), None),
        ("focal", make_loss(focal), classes),
        ("smooth", make_loss(smooth), None),
        ("flat", make_loss(flat), None),
    ]


CASES = [pytest.param(loss, targets, id=name) for name, loss, targets in cases()]


def outputs(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def clipped_hessians(loss: Loss, targets: Tensor | None, at: Tensor) -> Tensor:
    """(M, C, C) positive parts of the row Hessians by torch's own."""
    reference = at.clone()
    found = []
    for row in range(at.shape[0]):

        def value(z: Tensor, row: int = row) -> Tensor:
            every = torch.cat([at[:row], z[None], at[row + 1 :]])
            return loss.values(every, targets, reference)[row]

        hessian = torch.autograd.functional.hessian(value, at[row])
        values, vectors = torch.linalg.eigh(hessian)
        found.append(vectors @ torch.diag(values.clamp(min=0)) @ vectors.T)
    return torch.stack(found)


@pytest.mark.parametrize(("loss", "targets"), CASES)
def test_gradients_are_those_of_the_values(loss: Loss, targets: Tensor | None) -> None:
    reference = outputs() + 0.5
    leaf = outputs().requires_grad_(True)
    wanted = torch.autograd.grad(loss.values(leaf, targets, reference).sum(), leaf)[0]
    torch.testing.assert_close(loss.gradient(outputs(), targets, reference), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("loss", "targets"), CASES)
def test_probes_over_all_signs_have_the_covariance_of_the_hessian(loss: Loss, targets: Tensor | None) -> None:
    at = outputs()
    every = [torch.tensor(signs).expand(ROWS, COLUMNS) for signs in itertools.product((-1.0, 1.0), repeat=COLUMNS)]
    probes = torch.stack([loss.probe(at, targets, signs) for signs in every])
    covariance = torch.einsum("smc,smd->mcd", probes, probes) / len(every)
    torch.testing.assert_close(covariance, clipped_hessians(loss, targets, at), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("loss", "targets"), CASES)
def test_features_have_the_length_of_the_quadratic_form(loss: Loss, targets: Tensor | None) -> None:
    at, change = outputs(), torch.randn(2, ROWS, COLUMNS, generator=torch.Generator().manual_seed(2))
    form = torch.einsum("kmc,mcd,kmd->km", change, clipped_hessians(loss, targets, at), change)
    torch.testing.assert_close(loss.features(change, at, targets).square().sum(-1), form, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("loss", "targets"), CASES)
def test_the_divergence_is_zero_at_the_reference_and_half_the_form_near_it(loss: Loss, targets: Tensor | None) -> None:
    at = outputs()
    assert float(loss.divergence(at, targets, at).abs().max()) < 1e-6
    change = 0.03 * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    half = 0.5 * loss.features(change, at, targets).square().sum(-1)
    apart = loss.divergence(at + change, targets, at)
    assert bool((apart >= 0).all())
    if not isinstance(loss, CallableLoss):  # whose Hessian may have negative eigenvalues, clipped in either way
        torch.testing.assert_close(apart, half, rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("name", ["cross-entropy", "binary-cross-entropy", "squared-error"])
def test_ignored_rows_count_nowhere(name: str) -> None:
    columns = COLUMNS if name == "cross-entropy" else 1
    loss, at = make_loss(name), outputs(columns=columns)
    targets = torch.tensor([1, -100, 0])
    found = (
        loss.values(at, targets, at)[:, None], loss.gradient(at, targets, at),
        loss.features(at + 1, at, targets), loss.probe(at, targets, torch.ones_like(at)),
    )  # fmt: skip
    for rows in found:
        assert float(rows[1].abs().sum()) == 0.0
        assert float(rows[0].abs().sum()) > 0.0


@pytest.mark.parametrize(("name", "torch_loss"), [
    ("squared-error", functional.mse_loss), ("binary-cross-entropy", functional.binary_cross_entropy_with_logits),
])  # fmt: skip
def test_several_columns_are_averaged_as_torch_does(name: str, torch_loss: object) -> None:
    at, goal = outputs(), torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(4))
    assert float(make_loss(name).values(at, goal, at).mean()) == pytest.approx(float(torch_loss(at, goal)), rel=1e-6)  # type: ignore[operator]


def test_the_root_of_a_callable_is_computed_once_for_every_slice_and_given_back_with_its_outputs() -> None:
    calls = []

    def counted(rows: Tensor, targets: Tensor | None) -> Tensor:
        calls.append(rows.shape)
        return rows.pow(4).sum(-1)

    loss = CallableLoss(counted)
    at = outputs()
    first = loss.features(at, at, None)
    for _ in range(3):
        torch.testing.assert_close(loss.features(at, at, None), first)
    assert len(calls) == 1
    other = at + 1
    loss.features(at, other, None)
    assert len(calls) == 2
    del other
    loss.features(at, at.clone(), None)
    assert len(loss._roots) == 2  # at and the copy; what died was given back


def test_roots_that_do_not_fit_are_refused_with_what_to_do_and_probes_need_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(custom_loss, "ROOT_MEMORY", 4 * ROWS * COLUMNS**2 - 1)
    loss, classes = make_loss(focal), torch.tensor([0, 1, 2])
    with pytest.raises(InvalidModel, match="metric='products'"):
        loss.features(outputs(), outputs(), classes)
    test_probes_over_all_signs_have_the_covariance_of_the_hessian(loss, classes)


def test_the_lanczos_root_of_many_outputs_is_that_of_the_dense_hessian() -> None:
    generator = torch.Generator().manual_seed(5)
    rows, columns = 4, 100
    logits = 3 * torch.randn(rows, columns, generator=generator)
    share = logits.softmax(-1)
    dense = torch.diag_embed(share) - share[:, :, None] * share[:, None, :]
    values, vectors = torch.linalg.eigh(dense.double())
    root = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.transpose(1, 2)
    signs = torch.randint(2, (rows, columns), generator=generator) * 2.0 - 1.0
    wanted = torch.einsum("mcd,md->mc", root, signs.double())
    found = make_loss(lambda z, _: torch.logsumexp(z, -1)).probe(logits, None, signs).double()
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_lanczos_ends_early_where_a_row_has_few_eigenvalues() -> None:
    scales = torch.tensor([0.0, 2.0, 7.0])[:, None]
    signs = torch.randint(2, (3, 200), generator=torch.Generator().manual_seed(6)) * 2.0 - 1.0
    torch.testing.assert_close(
        lanczos_root(lambda v: scales * v, signs, 16), scales.sqrt() * signs, atol=1e-5, rtol=1e-5
    )


def test_binary_targets_beyond_zero_and_one_are_refused() -> None:
    loss = make_loss("binary-cross-entropy")
    with pytest.raises(InvalidBatches, match="squared-error"):
        loss.values(torch.zeros(2, 1), torch.tensor([0.0, 2.0]), torch.zeros(2, 1))
    with pytest.raises(InvalidBatches, match="do not fit"):
        loss.values(torch.zeros(2, 1), torch.tensor([0.0, 1.0, 1.0]), torch.zeros(2, 1))
