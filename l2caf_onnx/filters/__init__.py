"""Filters: the set that they live on, what they are made of, and how they are shown.

A filter is one number per spatial cell of S1, shared by all channels, one filter per sample: a tensor (N, *spatial).
"""

from .lifts import Basis, Grid, Smooth, averaged, parse_basis, sized
from .maps import heatmap, traced
from .occlusions import crops, occlusions
from .sets import (
    CONSTRAINTS,
    SETS,
    ConstraintSet,
    Free,
    NonnegSphere,
    Simplex,
    Sphere,
    constraint_set,
    norm_of,
    parse_radius,
)
from .space import Space, made_of, space

__all__ = [
    "CONSTRAINTS",
    "SETS",
    "Basis",
    "ConstraintSet",
    "Free",
    "Grid",
    "NonnegSphere",
    "Simplex",
    "Smooth",
    "Space",
    "Sphere",
    "averaged",
    "constraint_set",
    "crops",
    "heatmap",
    "made_of",
    "norm_of",
    "occlusions",
    "parse_basis",
    "parse_radius",
    "sized",
    "space",
    "traced",
]
