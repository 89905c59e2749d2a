"""The base classes of methods and what they train on."""
