"""Axes as products of atoms, as einops writes them: what is left of batch, channels, rows and columns after a Reshape.

(N, C, H, W) -> (N, C, (H W)) -> (N, (H W), C) says that the tokens form a grid; (N, T, (G C)) -> (N, G, T, C) says
which axis holds the heads. An axis that mixes the batch with places (Swin's windows) is neither, and is called nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .tokens import Grid

CONSTANT = "-"  # the letter of an axis that only stored values have
KEPT = "*"  # class and register tokens alone
_CHANNELS = "CGK"
_SPARE = "TSUVXYZABEFIJMOPQR"  # letters for further spatial axes


@dataclass(frozen=True, slots=True)
class Atom:
    """A factor of an axis: which axis it came from, how many, and how far apart its neighbours lay there.

    `grid` is given where it stands for a grid with other tokens around it, which cannot be taken apart by Reshape.
    """

    letter: str
    size: int
    stride: int = 1
    grid: Grid | None = None


Axis = tuple[Atom, ...]  # row-major: the last one runs fastest
Shaped = tuple[Axis, ...]


def size_of(axis: Axis) -> int:
    """How long an axis is."""
    return prod(atom.size for atom in axis)


def sizes_of(shaped: Shaped) -> tuple[int, ...]:
    """The tensor's shape."""
    return tuple(size_of(axis) for axis in shaped)


def fresh(layout: str | None, sizes: Sequence[int]) -> Shaped:
    """Axes of which no more is known than their letters (None: not even these)."""
    letters = layout if layout is not None and len(layout) == len(sizes) else CONSTANT * len(sizes)
    return tuple(
        (Atom("C" if letter in _CHANNELS else letter, size),) for letter, size in zip(letters, sizes, strict=True)
    )


def kind(axis: Axis) -> str | None:
    """What an axis is: "N", "C", a spatial letter ("T" for several at once), "" (nothing known), None (a mixture)."""
    letters = {a.letter for a in axis if a.size > 1 or a.letter == "N"} - {CONSTANT}
    if "N" in letters and "C" in letters and all(a.size == 1 for a in axis if a.letter == "N"):
        letters.remove("N")
    if "N" in letters:
        return "N" if len(letters) == 1 else None
    if "C" in letters:
        return "C"
    if len(letters) > 1 or sum(a.size > 1 for a in axis) > 1:
        return "T"
    return next(iter(letters), "")


def grid_of(axis: Axis) -> Grid | None:
    """The grid that an axis runs through, row by row, if it is one."""
    atoms = [a for a in axis if a.size > 1]
    if len(atoms) == 1:
        return atoms[0].grid
    in_order = "".join(a.letter for a in atoms) in ("HW", "DHW", "DH", "DW")
    return Grid(tuple(a.size for a in atoms)) if in_order and not any(a.grid for a in atoms) else None


def letters_of(shaped: Shaped, base: str | None) -> str | None:
    """A layout, each letter once; `base` says what axes of one cell, or of unknown origin, are called.

    None where an axis is a mixture, or nothing says what it is.
    """
    kinds = [kind(axis) for axis in shaped]
    if any(k is None for k in kinds) or kinds.count("N") > 1:
        return None
    if base is not None and len(base) != len(kinds):
        base = None
    found = ["" if k is None else "T" if k == KEPT else k for k in kinds]
    if base is None and any(not k and size_of(axis) > 1 for k, axis in zip(found, shaped, strict=True)):
        return None
    channels = [i for i, k in enumerate(found) if k == "C"]
    for i, letter in zip(channels, ("C",) if len(channels) == 1 else ("KGC")[-len(channels) :], strict=False):
        found[i] = letter
    if len(channels) > len(_CHANNELS):
        return None
    used: set[str] = set()
    for i, k in enumerate(found):  # what is known goes first
        if k and k in used:
            found[i] = k = next(s for s in _SPARE if s not in used and s not in found)
        used.add(k)
    if {"T", "S"} <= used and len(channels) == 1 and channels[0] < len(found) - 1:
        found[channels[0]] = "G"  # query x key: what is left of the channels are the heads
        used.add("G")
    agrees = base is not None and all(not k or k == b for k, b in zip(found, base, strict=True))
    for i, k in enumerate(found):
        if not k:
            wishes = (base[i] if base and (agrees or size_of(shaped[i]) > 1) else "") + _CHANNELS + _SPARE
            found[i] = next(s for s in wishes if s not in used)
            used.add(found[i])
    return "".join(found)


def adapted(shaped: Shaped, layout: str) -> Shaped:
    """`shaped` where it agrees with `layout`; fresh axes where it does not."""
    new = fresh(layout, sizes_of(shaped))
    return tuple(old if _class(kind(old)) == _class(kind(own)) else own for old, own in zip(shaped, new, strict=True))


def _class(k: str | None) -> str:
    return "?" if not k else k if k in "NC" else "space"


def reshaped(shaped: Shaped, sizes: Sequence[int]) -> Shaped | None:
    """The axes after Reshape; None where they do not fall on the boundaries of atoms."""
    waiting = [atom for axis in shaped for atom in (axis if size_of(axis) > 1 else axis[:1])][::-1]
    made: list[Axis] = []
    for size in sizes:
        axis: list[Atom] = []
        total = 1
        if size == 1 and waiting and waiting[-1].size == 1:
            axis.append(waiting.pop())
        while total < size:
            if not waiting:
                return None
            atom, rest = waiting.pop(), size // total
            if size % total:
                return None
            if rest % atom.size == 0:
                axis.append(atom)
                total *= atom.size
            elif atom.size % rest == 0 and atom.grid is None:
                inner = atom.size // rest
                axis.append(Atom(atom.letter, rest, atom.stride * inner))
                waiting.append(Atom(atom.letter, inner, atom.stride))
                total = size
            else:
                return None
        made.append(_joined(axis))
    return tuple(made) if all(a.size == 1 for a in waiting) else None


def _joined(axis: list[Atom]) -> Axis:
    """Neighbours that were one atom before they were split are one again."""
    found: list[Atom] = []
    for atom in axis:
        if atom.size == 1 and atom.letter != "N" and len(axis) > 1:
            continue
        last = found[-1] if found else None
        whole = last and last.letter == atom.letter and last.stride == atom.stride * atom.size
        if last and whole and not last.grid and not atom.grid:
            found[-1] = Atom(atom.letter, last.size * atom.size, atom.stride)
        else:
            found.append(atom)
    return tuple(found)


def resized(shaped: Shaped, sizes: Sequence[int]) -> Shaped:
    """The axes after an operator that keeps their order and meaning but may change their sizes."""
    return tuple(
        axis if size_of(axis) == size else (Atom(kind(axis) or CONSTANT, size),)
        for axis, size in zip(shaped, sizes, strict=True)
    )


def broadcast(parts: Sequence[Shaped]) -> Shaped | None:
    """The axes of an element-wise result: of each axis, the part that has most to say."""
    rank = max(map(len, parts))
    made: list[Axis] = []
    for k in range(-rank, 0):
        axes = [p[k] for p in parts if len(p) >= -k]
        size = max(size_of(a) for a in axes)
        if any(size_of(a) not in (1, size) for a in axes):
            return None
        made.append(max((a for a in axes if size_of(a) == size), key=_says))
    return tuple(made)


def _says(axis: Axis) -> int:
    k = kind(axis)
    return 0 if k == "" else 1 if k is None else 2 + (grid_of(axis) is not None)


def summed(equation: str, parts: Sequence[Shaped], constant: Sequence[bool]) -> Shaped | None:
    """The axes of an Einsum without dots: each letter means what it means in the data; of weights alone, channels."""
    reads, arrow, makes = equation.partition("->")
    terms = reads.split(",")
    if not arrow or "." in equation or [len(t) for t in terms] != [len(p) for p in parts]:
        return None
    meant: dict[str, Axis] = {}
    for term, part, fixed in sorted(zip(terms, parts, constant, strict=True), key=lambda t: t[2]):
        for letter, axis in zip(term, part, strict=True):
            meant.setdefault(letter, (Atom("C", size_of(axis)),) if fixed else axis)
    return tuple(meant[letter] for letter in makes)


def concatenated(parts: Sequence[Axis], constant: Sequence[bool]) -> Axis:
    """The axis along which `parts` are joined: one grid among tokens that stand for no place, or a fresh axis."""
    total = sum(size_of(p) for p in parts)
    plain: Axis = (Atom(next((k for k in map(kind, parts) if k), CONSTANT), total),)
    grids = [grid_of(p) for p in parts]
    if sum(g is not None for g in grids) != 1:
        return plain
    apart = [
        fixed or size_of(p) == 1 or kind(p) == KEPT for p, g, fixed in zip(parts, grids, constant, strict=True) if not g
    ]
    at = next(i for i, g in enumerate(grids) if g)
    grid = grids[at]
    if grid is None or not all(apart):
        return plain
    before, after = (sum(map(size_of, side)) for side in (parts[:at], parts[at + 1 :]))
    return (Atom("T", total, grid=Grid(grid.sizes, grid.prefix + before, grid.suffix + after)),)


def sliced(axis: Axis, start: int, stop: int) -> Axis:
    """The axis between two indices: a grid with fewer tokens around it, kept tokens alone, or a fresh axis."""
    if (start, stop) == (0, size_of(axis)):
        return axis
    grid = grid_of(axis)
    if grid is not None:
        end = grid.tokens - grid.suffix
        if start <= grid.prefix and stop >= end:
            left = Grid(grid.sizes, grid.prefix - start, stop - end)
            return (Atom("T", stop - start, grid=left),)
        if stop <= grid.prefix or start >= end:
            return (Atom(KEPT, stop - start),)
    return (Atom(kind(axis) or CONSTANT, stop - start),)
