"""`batchline simulate`: the stand-in upstream."""
