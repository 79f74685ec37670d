"""What the protobuf says: tensors, layouts, breakpoints, and rewriting. Nothing is run here."""
