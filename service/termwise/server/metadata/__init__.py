"""What the operator wants, durably: SQLite and the data folder."""
