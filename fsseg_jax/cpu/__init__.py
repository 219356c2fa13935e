"""Workarounds and faster code for CPUs; none of it changes a result by more than rounding."""
