"""A Chrome trace of one measured iteration, made from the records of its run."""
