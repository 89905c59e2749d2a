"""Functions of the public API: erase, fit, evaluate, attack, load and apply edits."""
