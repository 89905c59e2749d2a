"""A run as a page to send to a colleague, and as a model card; imports no torch."""
