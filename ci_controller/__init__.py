"""The singleton that closes the gap between the database and Docker: observe, plan, execute."""
