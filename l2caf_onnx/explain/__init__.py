"""From a question to its answer: the plan of it, its breakpoint, the batch it is asked of, the solve and the proof.

`query` fills in what was left open, `stop` cuts, `batches` divides the feeds; a `scene` is one breakpoint on one batch,
which all questions about it share: `opened` runs the filtered tail in onnxruntime, `filtered` in torch, `collapsed`
makes a matrix of it where it is affine. `explanation` solves, proves and puts on record.
"""
