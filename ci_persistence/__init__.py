"""Where state lives: the SQLite repository, its migrations, the log store and the archive store."""
