"""A whole cluster on one machine: every host is a network namespace with an address of its own, on one bridge."""
