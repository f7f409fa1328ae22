"""The HTTP API: authentication, submission, streaming; never talks to Docker."""
