"""The command line: parsing and printing.

A command is the function ``run_NAME`` of the words behind it, in the module of its name. For what
the user can correct it raises an `ErasureError`, of which `main` prints one line.
"""
