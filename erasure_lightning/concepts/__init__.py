"""Concepts, files of concepts, vocabularies and worlds."""
