"""Where the state of sessions lives: in memory, in SQLite, in Valkey; one small interface for all."""
