"""The `ci` command and the client library under it; knows the server only through HTTP."""
