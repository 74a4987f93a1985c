"""Checks of a machine, and of the links between ranks, before anything is measured there."""
