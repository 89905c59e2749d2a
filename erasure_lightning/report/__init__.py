"""Reports on runs as an HTML page and as a model card; imports no torch."""
