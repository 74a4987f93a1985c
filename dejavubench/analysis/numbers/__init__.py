"""Statistics of samples: medians, intervals, paired overheads, changes between rounds."""
