"""The command line: the only package that knows a parser exists."""
