"""What several tests need."""

import os

# Tests of sharding need several devices; more threads than cores would only get in each other's
# way otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
