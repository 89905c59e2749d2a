"""Edit files, their compatibility with pipelines, and their application."""
