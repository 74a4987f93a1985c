"""One module or package per destination: the source's side and the sink's side together."""
