"""Pictures from records: nothing here runs a model, and nothing is shown that the saved arrays do not have.

`overlay` draws a heatmap on the picture that the model saw; `names` makes file names of tensor names. The modules are
imported one by one (`from l2caf_onnx.render.overlay import overlay`), so that a name costs no drawing library.
"""
