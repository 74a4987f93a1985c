"""The operators of a CPU: kernels compiled by numba for a decode step, torch's for a prompt."""
