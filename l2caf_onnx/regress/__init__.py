"""Regression checks: is what a changed model computes, and looks at, still what the model before it did?

`change` reads the class of a change from both graphs; `align` finds which tensor is which; `observe` runs a model once
and keeps what is compared; `metrics` are the measures, `twins` harmless variants whose noise `calibrate` makes
thresholds of. `compare` holds two models against each other, `baseline` and `check` one against what was stored of it;
`bisect` names the node where they part.
"""
