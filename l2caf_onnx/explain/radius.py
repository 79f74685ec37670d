"""The radius "auto": the measured one, raised sample by sample until the tail is alive.

What the size of a filter does was measured in the grid pointing game, on the choosing half of the photos
(EfficientNet-Lite0, from 28x28 to the last convolution; f >= 0, contrast, solver lbfgs; the shape of a filter in closed
form does not hang on its size): of rho .25, .35, .42, .5, .7 and .85 those
about .42 had the best or nearly the best map of a class at every depth, and none was better at all of them; of a change
of outputs, on the toys, .5. Rules that search the smallest rho at which the filtered scores regain a part (0 to 200%)
of the unfiltered contrast chose .25 to .35 for most photos and scored far lower: a tail whose scores have come back is
not yet one that tells the cells apart. So a path over rho is not worth its cost; but where onnxruntime shows that the
tail is dead, which leaves only biases, rho grows by steps of sqrt(2), for the samples concerned alone.
"""

from __future__ import annotations

import math

import numpy as np

from .solved import Rho, Solved
from .solving import Solving

RHO_OF_CLASS, RHO = 0.42, 0.5
_STEP = math.sqrt(2)
_LARGEST = 4.0  # of a filter whose trivial answer is not f = 1
_BELOW_ONE = 0.95


def calibrated(solving: Solving) -> Solved:
    """The filter at the smallest rho of the path at which each sample's tail is alive.

    Raises:
        SolverError: it is dead at all of them.
    """
    return solving.solved(radii(solving))


def radii(solving: Solving) -> Rho:
    """(N,) rho of each sample; the largest of the path where it is dead at all of them, which the solver refuses."""
    largest = _BELOW_ONE if solving.asked.changes else _LARGEST
    rho = np.full(solving.scene.onnx.samples, RHO_OF_CLASS if solving.objective.class_specific else RHO)
    if solving.exact is not None:  # an affine tail is as much alive at one size as at another
        return rho
    while True:
        dead = solving.scene.dead(solving.space(rho), solving.asked.seed)
        raised = np.where(dead, np.minimum(rho * _STEP, largest), rho)
        if not np.any(dead) or np.array_equal(raised, rho):
            return rho
        rho = raised
