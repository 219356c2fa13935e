"""How many examples the tests with any bytes take: EXAMPLES=20000 pytest -k any_ for many."""

import os

EXAMPLES = int(os.environ.get("EXAMPLES", 200))
