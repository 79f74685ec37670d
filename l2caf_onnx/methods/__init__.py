"""Methods: what others draw at a breakpoint, each from the activation there and the score that the tail gives it.

They stand beside L2-CAF on the same cut, so that a comparison is one of methods and of nothing else. They know
functions and tensors, nothing of networks. What is left out of each paper, or settled where it is silent, stands in the
docstring of its function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from l2caf_onnx.errors import InputError

from .blind import centre, energy
from .case import Case, Score
from .eigencam import eigencam
from .gradient import gradcam, gradcam_plus_plus, hirescam
from .reciprocam import reciprocam
from .rise import rise
from .scorecam import scorecam

__all__ = ["METHODS", "Case", "Method", "Score", "resolve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A map (N, *spatial) float32 for each sample of a case, before min-max scaling.

    Attributes:
        name: As `attend(method=...)` takes it.
        source: The paper, and where in it.
        gradient: Whether it needs the score's gradient.
        function: Makes the maps. It gives a sample in a batch the map that it gives it alone, and zeros where the map
            is constant or not finite.
    """

    name: str
    source: str
    gradient: bool
    function: Callable[[Case], Tensor]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="gradcam",
            source="Selvaraju et al., ICCV 2017, arXiv 1610.02391, equations 1 and 2",
            gradient=True,
            function=gradcam,
        ),
        Method(
            name="hirescam",
            source="Draelos & Carin 2020, arXiv 2011.08891",
            gradient=True,
            function=hirescam,
        ),
        Method(
            name="gradcam++",
            source="Chattopadhay et al., WACV 2018, arXiv 1710.11063, equation 19",
            gradient=True,
            function=gradcam_plus_plus,
        ),
        Method(
            name="scorecam",
            source="Wang et al., CVPR workshops 2020, arXiv 1910.01279, algorithm 1",
            gradient=False,
            function=scorecam,
        ),
        Method(
            name="eigencam",
            source="Muhammad & Yeasin, IJCNN 2020, arXiv 2008.00299",
            gradient=False,
            function=eigencam,
        ),
        Method(
            name="reciprocam",
            source="Byun & Lee 2022, arXiv 2209.14074",
            gradient=False,
            function=reciprocam,
        ),
        Method(
            name="rise",
            source="Petsiuk, Das & Saenko, BMVC 2018, arXiv 1806.07421, equation 6",
            gradient=False,
            function=rise,
        ),
        Method(
            name="centre",
            source="baseline: a Gaussian at the centre that sees nothing",
            gradient=False,
            function=centre,
        ),
        Method(
            name="energy",
            source="baseline: the norm over the channels, that knows no class",
            gradient=False,
            function=energy,
        ),
    )
}


def resolve(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}.", how=f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]
