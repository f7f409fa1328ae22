"""A whole real system under a steady stream of known jobs and random faults, and what must hold all the same."""
