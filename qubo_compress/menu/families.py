"""Families of choices: settings of each kind of operator that are worth offering together.

An operator's file says what it offers in which family, so that a menu can be built by family: ``Menu.of("quantize",
"low-rank")``.
"""

from __future__ import annotations

from qubo_compress.errors import unknown_name

_offered: dict[str, list[str]] = {}


def offer(family: str, *choices: str) -> None:
    """Add choices, by name, to a family."""
    known = _offered.setdefault(family, [])
    known += [name for name in choices if name not in known]


def family_names() -> tuple[str, ...]:
    """Names of all families, sorted."""
    return tuple(sorted(_offered))


def choices_of(family: str) -> tuple[str, ...]:
    """Names of a family's choices.

    Raises:
        UnknownName: when there is no such family.

    Example:
        >>> choices_of("quantize")[:2]
        ('quantize(bits=2)', 'quantize(bits=3)')
    """
    if family not in _offered:
        raise unknown_name("family", family, _offered)
    return tuple(_offered[family])


def family_of(choice: str) -> str:
    """The first family that offers a choice, or else the name of its operator.

    Example:
        >>> family_of("quantize(bits=4,sparsity=0.5)"), family_of("quantize(bits=4,sparsity=0.9)"), family_of("keep")
        ('prune', 'quantize', 'keep')
    """
    for family, names in _offered.items():
        if choice in names:
            return family
    return choice.partition("(")[0]
