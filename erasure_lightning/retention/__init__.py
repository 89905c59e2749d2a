"""What must survive: one callback a file."""
