"""Reading and writing files: atomic writes, locks, tables, YAML, text."""
