"""Probes of the machine: rates of memory, CPU, GPU and the way from a GPU to the host."""
