"""What the page of `fsseg_jax.demo` lets in, and where it keeps it."""
