"""Names for a profiler: NVTX ranges around what the threads of a rank do."""
