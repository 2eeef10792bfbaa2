"""How well errors are foreseen, on models that fail in known ways; see `__main__`."""

import os

# A variant a core, and the same sums on any machine; before NumPy is imported.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")
