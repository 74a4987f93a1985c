"""More microbatches in flight than caches in place.

From the bottom up: ``residents`` are the caches in place, which microbatches take turns in;
``cache_fetcher`` fetches the whole cache of a microbatch into one; ``swapper`` says whose turn it
is, and counts in ``swap_cost``.
"""
