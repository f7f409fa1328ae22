"""The routes, one module per family: what a request names, one call, one answer."""
