"""Ways out of a job, tried: each probe is something that hostile test code would do and must not be able to.

Everything in this package but `report`, `container` and `targets` runs inside the runner image (standard library
only, Python 3.8 or newer): as a submitted job in `tests/sandbox`, and for `ci-admin doctor --probe` in a container
made like a job's.
"""
