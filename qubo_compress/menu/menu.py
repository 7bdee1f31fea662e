"""The menu: the choices offered to each group."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from qubo_compress._internal.checks import plain
from qubo_compress.errors import InvalidMenu, unknown_name
from qubo_compress.menu.activations import Activations, takes_activations
from qubo_compress.menu.cast import Cast
from qubo_compress.menu.coding.coded import Coded, can_be_coded, coded_name
from qubo_compress.menu.families import choices_of, family_names
from qubo_compress.menu.fold import Fold
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.operator import Operator, adopt, choice_name, parse
from qubo_compress.menu.prune import Prune
from qubo_compress.menu.quantize import Quantize
from qubo_compress.network.groups import Group

PRESETS = {"smallest": ("trellis", "vectors")}
"""Name of a preset -> the families whose choices it offers."""

LARGEST_MENU = 255
"""A file names the choice of each group in one byte."""


class Menu:
    """The choices offered to every group that they suit; ``keep`` is always one of them.

    Args:
        operators: explicit operators, or names of choices; then no other argument is allowed.
        bits: bits per weight to offer; None among them means not quantized.
        sparsity: shares of weights to prune; the menu is the product of both.
        vector_bits: precisions of biases and normalisations.

    Raises:
        InvalidMenu: for values out of range, duplicates, or more than 255 choices.
        UnknownName: for the name of a choice of no operator.

    Example:
        >>> Menu(["quantize(bits=4)", "svd(share=0.4)"]).names
        ('keep', 'quantize(bits=4)', 'svd(share=0.4)')
        >>> Menu(bits=(4, None), sparsity=(0.0, 0.5), vector_bits=()).names
        ('keep', 'quantize(bits=4)', 'quantize(bits=4,sparsity=0.5)', 'prune(sparsity=0.5)')
    """

    def __init__(
        self,
        operators: Sequence[Operator | str] | None = None,
        *,
        bits: Sequence[int | None] | None = None,
        sparsity: Sequence[float] | None = None,
        vector_bits: Sequence[int] | None = None,
    ) -> None:
        if operators is not None:
            if bits is not None or sparsity is not None or vector_bits is not None:
                raise InvalidMenu("give either operators or bits, sparsity and vector_bits, not both")
            if isinstance(operators, str):
                raise InvalidMenu(f"give a list of choices, such as [{operators!r}]; got the one name {operators!r}")
            offered = [parse(item) if isinstance(item, str) else item for item in operators]
            for item in offered:
                adopt(item)
                if not isinstance(item, Operator):
                    raise InvalidMenu(f"{item!r} is not an operator; see qubo_compress.menu.names()")
        else:
            offered = _product(
                (2, 3, 4, 6, 8) if bits is None else _listed("bits", bits),
                (0.0, 0.5, 0.75) if sparsity is None else _listed("sparsity", sparsity),
            )
            for width in (16, 8) if vector_bits is None else _listed("vector_bits", vector_bits):
                offered += [Fold(width), Cast(width)]
        named: dict[str, Operator] = {"keep": Keep()}
        for operator in offered:
            name = choice_name(operator)
            if name in named and name != "keep":
                raise InvalidMenu(f"{name} is on the menu twice")
            named[name] = operator
        if len(named) > LARGEST_MENU:
            raise InvalidMenu(f"a menu has at most {LARGEST_MENU} choices; got {len(named)}")
        self._operators = named

    @classmethod
    def of(cls, *families: str, coded: bool = False) -> Menu:
        """The choices of some families, and vectors at lower precision.

        Args:
            families: see :func:`qubo_compress.menu.family_names`; none: a selection from every family.
            coded: also offer every choice of weights behind the entropy coder, and choices that are made for it.

        Raises:
            UnknownName: for an unknown family.

        Example:
            >>> Menu.of("quantize").names[:3]
            ('keep', 'quantize(bits=2)', 'quantize(bits=3)')
            >>> Menu.of("quantize", coded=True).names[6]
            "coded(of='quantize(bits=2)')"
        """
        wanted = [family for family in families or family_names() if family != "vectors"]
        offered = dict.fromkeys(name for family in wanted for name in choices_of(family))
        plain = [name for name in offered if not isinstance(parse(name), Coded)]
        names = [*plain]
        if coded:
            names += [coded_name(name) for name in plain if can_be_coded(parse(name))]
            names += [name for name in offered if name not in plain]
        return cls([parse(name) for name in dict.fromkeys([*names, *choices_of("vectors")])])

    @classmethod
    def preset(cls, name: str) -> Menu:
        """A menu for one purpose.

        Args:
            name: ``"smallest"``: the most accuracy for the bytes of the file: the weights of every layer as coded
                codes of a trellis, at one of 14 steps.

        Raises:
            UnknownName: for an unknown preset.

        Example:
            >>> menu = Menu.preset("smallest")
            >>> len(menu.names), menu.names[1]
            (19, "coded(of='trellis(step=0.2)')")
        """
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        return cls(list(dict.fromkeys(choice for family in PRESETS[name] for choice in choices_of(family))))

    def coded(self, instead: bool = False) -> Menu:
        """This menu with the coded form of every choice that can be entropy-coded.

        Vectors and choices in unreliable cells are not coded. Coded values are equal to plain ones, so measuring them
        takes no more runs of the network.

        Args:
            instead: omit the plain form if there is a coded one. For a few weights the coded form may be larger by some
                bytes.

        Raises:
            InvalidMenu: when that makes more than 255 choices.

        Example:
            >>> Menu(bits=(4,), sparsity=(0.0,), vector_bits=(16,)).coded().names
            ('keep', 'quantize(bits=4)', "coded(of='quantize(bits=4)')", 'fold(bits=16)', 'cast(bits=16)')
        """
        offered: dict[str, Operator] = {}
        for name, operator in self._operators.items():
            coded = Coded(name) if can_be_coded(operator) else None
            if coded is None or not instead:
                offered[name] = operator
            if coded is not None:
                offered[choice_name(coded)] = coded
        return Menu(list(offered.values()))

    def with_activations(self, bits: int = 8, instead: bool = False, percentile: float | None = None) -> Menu:
        """This menu with every choice of whole numbers also with the layer's inputs rounded to some bits.

        Args:
            bits: of the inputs, 2 to 8; runtimes compute with 8. See :mod:`qubo_compress.menu.activations`.
            instead: omit the form whose inputs stay as they are.
            percentile: of the inputs, at which the range ends; by default it has the least squared error.

        Raises:
            InvalidMenu: when that makes more than 255 choices, or for other bits or percentiles.

        Example:
            >>> Menu(bits=(8,), sparsity=(0.0, 0.5), vector_bits=()).with_activations(8, instead=True).names
            ('keep', 'quantize(bits=8,activations=8)', 'quantize(bits=8,sparsity=0.5,activations=8)')
        """
        offered: dict[str, Operator] = {}
        for name, operator in self._operators.items():
            rounded = Activations(name, bits, percentile) if takes_activations(operator) else None
            if rounded is None or not instead:
                offered[name] = operator
            if rounded is not None:
                offered[choice_name(rounded)] = rounded
        return Menu(list(offered.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all choices, ``keep`` first."""
        return tuple(self._operators)

    def operator(self, name: str) -> Operator:
        """The operator of a choice of this menu."""
        return self._operators[name]

    def offered(self, group: Group, parts: Sequence[Tensor]) -> dict[str, Operator]:
        """The choices that suit a group, ``keep`` first."""
        return {name: o for name, o in self._operators.items() if o.refusal(group, parts) is None}

    def __repr__(self) -> str:
        return f"Menu({', '.join(self.names)})"


def _listed(name: str, values: Sequence[Any]) -> list[Any]:
    """A list of numbers, with those of numpy and torch as Python numbers.

    Raises:
        InvalidMenu: for a single number, or arrays among the numbers.
    """
    try:
        found = [plain(value) for value in values]
    except TypeError as cause:
        raise InvalidMenu(f"{name} must be a list of numbers, such as [{plain(values)!r}]; got {values!r}") from cause
    wrong = [value for value in found if not (value is None or isinstance(value, Real))]
    if wrong:
        raise InvalidMenu(f"{name} must be a list of numbers; got {wrong[0]!r} among them")
    return found


def refuse_other_than_a_menu(menu: object) -> None:
    """Raise :class:`InvalidMenu` for anything but a menu, such as a list of names."""
    if menu is not None and not isinstance(menu, Menu):
        raise InvalidMenu(
            f"a menu is a qc.Menu, such as qc.Menu(bits=(2, 4, 8)) or qc.Menu.of('quantize'); got {menu!r}"
        )


def _product(bits: Sequence[int | None], sparsity: Sequence[float]) -> list[Operator]:
    offered: list[Operator] = []
    for width in bits:
        for share in sparsity:
            if width is not None:
                offered.append(Quantize(width, float(share)))
            elif share > 0:
                offered.append(Prune(float(share)))
    return offered
