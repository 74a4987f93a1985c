"""Two processes of one host that share memory: a GPU's for caches, and the host's for counters.

From the bottom up: ``shared_words`` maps host memory that both see; ``chunk_words`` are grants,
flags and counters in it; ``gpu_memory`` maps a GPU's memory; ``puts`` copies into it; ``pairs``
connects a source and a sink; ``chunk_queue`` puts a stream's chunks in order, each once it is
granted; ``granted_chunk`` waits for one.
"""
