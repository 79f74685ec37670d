"""How faithful maps are: games with a known answer, played by several methods side by side on the user's own model.

The room is not called `evaluate`: importing a module of that name would hide the function.
"""

from .evaluation import evaluate
from .record import Difference, Evaluation, Row, Summary

__all__ = ["Difference", "Evaluation", "Row", "Summary", "evaluate"]
