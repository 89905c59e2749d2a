"""The front door: erase, evaluate, attack, load and apply edits."""
