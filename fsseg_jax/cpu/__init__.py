"""What CPUs need and accelerators do not; none of it changes a result by more than rounding."""
