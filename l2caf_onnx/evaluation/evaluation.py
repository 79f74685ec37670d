"""The evaluation: games played on the reporting half, exponents chosen on the other, means with their intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.model import Model, load
from l2caf_onnx.preprocess import Source

from .bootstrap import RESAMPLES, interval
from .boxes import Annotations, read_boxes
from .classes import Classifier
from .contenders import contenders
from .contest import Contest
from .data import Data, Given, collect
from .games import Game, Tell
from .grid import Grid
from .localise import Boxes
from .perturb import Perturb
from .randomise import Randomise
from .record import LESS_IS_BETTER, NEITHER, Difference, Evaluation, Row, Summary
from .repeat import Repeat
from .scores import EXPONENTS

_NEGLIGIBLE = 5e-4  # three digits do not show it
_FEW = 10  # photos: the bootstrap knows no photo that was not drawn

Exponents = Mapping[tuple[str, str, str], int]  # of (game, breakpoint, method)
GAMES: dict[str, Callable[..., Game]] = {
    "grid": Grid, "boxes": Boxes, "perturb": Perturb, "randomise": Randomise, "repeat": Repeat
}  # fmt: skip
"""Every game by its name."""


def evaluate(
    model: Model | str | Path | bytes | onnx.ModelProto,
    data: Given,
    *,
    at: str | Sequence[str],
    to: str | Sequence[str] | None = None,
    games: Sequence[str | Game] = ("grid",),
    methods: Sequence[str] = ("default",),
    target: int | str | None = None,
    choose: Given | None = None,
    boxes: str | Path | Sequence[str | Path] | Annotations | None = None,
    labels: Mapping[int, str] | None = None,
    preprocess: Source | None = None,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    batch_size: int | None = None,
    device: str = "cpu",
    providers: Sequence[str] | None = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> Evaluation:
    """Measure how faithful the maps of several methods are, on your own model and photos.

    Every method goes through the same cut and the same rendering (min-max). Energy scores are given at the exponent of
    {1, 2, 4} that is best for that method, breakpoint and game on `choose`; without `choose` the exponent is 1.

    Args:
        model: What `load` takes.
        data: The reporting half: paths as `attend` takes them on the command line, or {input name: array}.
        at: S1, or several.
        to: S2; None: all outputs.
        games: Names, or games with settings of their own, such as `Grid(count=200)`.
        methods: "default", "paper", "gradcam", ..., or settings: "l2caf:constraint=l2-nonneg,radius=0.5".
        target: A class index or "top1"; "none": no class, as for embeddings; None: the class that the game knows, else
            "top1", and no class where the outputs are no class scores.
        choose: The choosing half: other photos.
        boxes: For the game "boxes": files as `read_boxes` takes them, or {file or "sample 0": [(label, box)]}.
        labels: Class names by index, that the boxes' labels mean.
        preprocess: How pictures become numbers, as `--preprocess`.
        reference: The method that the others are compared with; None: the first.
        resamples: Of the bootstrap over photos.
        batch_size: Samples at once; None: as free memory allows.
        device: "cpu" or "cuda", for the tail.
        providers: onnxruntime's execution providers.
        seed: Of every random choice.
        tell: Called with what was done last and the part of all that is done.

    Returns:
        An Evaluation.

    Raises:
        TensorNotFoundError, CutError: see `cut`.
        InputError: data, games or methods that cannot be used.
    """
    loaded = load(model)
    played = tuple(_game(g, boxes, labels or {}) for g in ([games] if isinstance(games, str) else games))
    if not played or len({g.name for g in played}) < len(played):
        raise InputError("Name each game once, and one at least.", where="`games`.", how=f"There are {_names(GAMES)}.")
    asked = contenders(methods)
    first = reference if reference is not None else asked[0].name
    if first not in {c.name for c in asked}:
        raise InputError(
            f"The reference {first!r} does not play.", where="`reference`.", how=f"Choose of {_names(methods)}."
        )
    if resamples < 1:
        raise InputError(f"There cannot be {resamples} resamples.", where="`resamples`.", how="Ask for 1000 or more.")
    reporting = collect(loaded, data, preprocess)
    choosing = None if choose is None else collect(loaded, choose, preprocess)
    if choosing is not None:
        _refuse_shared(choosing, reporting)
    names = tuple(dict.fromkeys(loaded.require(name) for name in ([at] if isinstance(at, str) else at)))
    if not names:
        raise InputError("No tensor to break at was named.", where="`at` is empty.", how="Name one.")
    watched = None if to is None else (to,) if isinstance(to, str) else tuple(to)
    if isinstance(target, str) and target not in ("top1", "none"):
        raise InputError(f"There is no target {target!r}.", how='Give a class index, "top1", or "none".')
    scored = Classifier(loaded, names[0], watched, providers=providers).scores_classes(reporting.read(0).feeds)
    contest = Contest(
        model=loaded,
        at=names,
        to=watched,
        contenders=asked,
        target=target,
        class_specific=scored and target != "none",
        batch_size=batch_size,
        device=device,
        providers=None if providers is None else tuple(providers),
        seed=seed,
        notes={},
        alone=set(),
    )
    parts = [(g, half) for g in played for half in _halves(g, choosing, reporting)]
    for game, half in parts:
        game.refuse(contest, half)
    rows: list[Row] = []
    chosen: list[Row] = []
    for k, (game, half) in enumerate(parts):
        if half is not reporting and isinstance(game, Grid) and game.choosing is not None:
            game = replace(game, count=game.choosing)
        found = game.play(contest, half, _share(tell, k, len(parts)))
        (rows if half is reporting else chosen).extend(found)
    exponents = best_exponents(chosen)
    if choosing is None and any(g.sharpens for g in played):
        contest.note("Energy is at exponent 1: there is no choosing half to choose each method's exponent on.")
    photos = min(len({r.photo for r in rows if r.game == g.name}) for g in played)
    if photos < _FEW:
        contest.note(f"There are {photos} photos: intervals of so few are narrower than the truth.")
    return Evaluation(
        rows=tuple(rows),
        summaries=tuple(summaries(rows, exponents, resamples, seed)),
        differences=tuple(differences(rows, exponents, first, resamples, seed)),
        games=tuple(g.name for g in played),
        methods=tuple(c.name for c in asked),
        at=contest.at,
        reference=first,
        chosen=choosing is not None,
        settings={
            **{g.name: g.describe() for g in played},
            "to": contest.to,
            "target": target,
            "samples": len(reporting),
            "choosing": 0 if choosing is None else len(choosing),
            "resamples": resamples,
            "device": device,
        },
        seed=seed,
        notes=tuple(contest.notes),
    )


def _game(
    given: str | Game, boxes: str | Path | Sequence[str | Path] | Annotations | None, classes: Mapping[int, str]
) -> Game:
    if not isinstance(given, str):
        return given
    if given == Boxes.name:
        if boxes is None:
            raise InputError("The game 'boxes' needs boxes.", where="`boxes`.", how="Name an annotation file.")
        return Boxes(annotations=boxes if isinstance(boxes, Mapping) else read_boxes(boxes), classes=classes)
    if given not in GAMES:
        raise InputError(f"There is no game {given!r}.", where="`games`.", how=f"There are {_names(GAMES)}.")
    return GAMES[given]()


def _names(known: Iterable[str]) -> str:
    return ", ".join(known)


def _halves(game: Game, choosing: Data | None, reporting: Data) -> list[Data]:
    return [choosing, reporting] if choosing is not None and game.sharpens else [reporting]


def _share(tell: Tell | None, turn: int, turns: int) -> Tell:
    """The part of one game's progress in that of all."""

    def told(what: str, part: float) -> None:
        if tell is not None:
            tell(what, (turn + part) / turns)

    return told


def _refuse_shared(choosing: Data, reporting: Data) -> None:
    """Raise InputError where a photo is in both halves, by its bytes: what is chosen on is not reported on."""
    seen = {_digest(choosing, k): choosing.names[k] for k in range(len(choosing))}
    for k in range(len(reporting)):
        if (digest := _digest(reporting, k)) in seen:
            raise InputError(
                f"{reporting.names[k]!r} is in the choosing half too, as {seen[digest]!r}.",
                how="Split by photo: what exponents are chosen on must not be reported on.",
            )


def _digest(data: Data, number: int) -> bytes:
    picture = data.picture(number)
    if picture is not None:
        return hashlib.sha256(picture[1].read_bytes()).digest()
    arrays = data.read(number).feeds
    return hashlib.sha256(b"".join(np.ascontiguousarray(arrays[n]).tobytes() for n in sorted(arrays))).digest()


# From rows to means


def best_exponents(rows: Iterable[Row]) -> dict[tuple[str, str, str], int]:
    """For each (game, breakpoint, method) the exponent of the largest mean energy; the smallest of equals."""
    sums: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for row in rows:
        for e in EXPONENTS:
            if f"energy@{e}" in row.scores:
                own = sums.setdefault((row.game, row.at, row.method), {k: [] for k in EXPONENTS})
                own[e].append(row.scores[f"energy@{e}"])
    return {key: _best(own) for key, own in sums.items()}


def _best(energies: Mapping[int, Sequence[float]]) -> int:
    return max(EXPONENTS, key=lambda e: (float(np.mean(energies[e])), -e))


def final(row: Row, exponents: Exponents) -> dict[str, float]:
    """The scores of a row with one energy, at the method's exponent."""
    kept = {name: value for name, value in row.scores.items() if not name.startswith("energy@")}
    exponent = exponents.get((row.game, row.at, row.method), EXPONENTS[0])
    energy = row.scores.get(f"energy@{exponent}")
    return kept if energy is None else {"energy": energy, **kept}


def _columns(rows: Iterable[Row], exponents: Exponents) -> dict[tuple[str, str, str], dict[str, dict[str, Any]]]:
    """(game, breakpoint, method) -> score -> item -> (value, photo, failed), in the order of the rows."""
    found: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        own = found.setdefault((row.game, row.at, row.method), {})
        for score, value in final(row, exponents).items():
            if np.isfinite(value):
                own.setdefault(score, {})[row.item] = (value, row.photo, row.failed)
    return found


def summaries(rows: Iterable[Row], exponents: Exponents, resamples: int, seed: int) -> Iterable[Summary]:
    """The mean of every score with its interval."""
    for (game, at, method), columns in _columns(rows, exponents).items():
        for score, cells in columns.items():
            values, photos, failed = zip(*cells.values(), strict=True)
            mean, low, high = interval(values, photos, resamples=resamples, seed=seed)
            exponent = exponents.get((game, at, method), EXPONENTS[0]) if score == "energy" else None
            yield Summary(
                game=game, at=at, method=method, score=score, exponent=exponent, mean=mean, low=low, high=high,
                least=min(values), most=max(values), items=len(values), photos=len(set(photos)), failed=sum(failed),
            )  # fmt: skip


def differences(
    rows: Iterable[Row], exponents: Exponents, reference: str, resamples: int, seed: int
) -> Iterable[Difference]:
    """The reference against every other method, paired by item."""
    found = _columns(rows, exponents)
    for (game, at, method), columns in found.items():
        if method == reference or (game, at, reference) not in found:
            continue
        for score, cells in columns.items():
            own = found[game, at, reference].get(score, {})
            both = [item for item in own if item in cells]
            if not both or score in NEITHER:
                continue
            values = [own[item][0] - cells[item][0] for item in both]
            photos = [own[item][1] for item in both]
            mean, low, high = interval(values, photos, resamples=resamples, seed=seed)
            sign = -1 if score in LESS_IS_BETTER else 1
            ends = sorted((sign * low, sign * high))
            verdict = "better" if ends[0] > 0 else "worse" if ends[1] < 0 else "equal"
            verdict = "equal" if abs(mean) < _NEGLIGIBLE else verdict
            yield Difference(
                game=game, at=at, method=method, reference=reference, score=score, mean=mean, low=low, high=high,
                verdict=verdict,
            )  # fmt: skip
