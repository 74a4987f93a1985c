"""Numbers from samples: statistics, overheads, bills of chunks, shares of ceilings."""
