"""The operators of a CUDA device: Triton kernels for a decode step, torch's for a prompt."""
