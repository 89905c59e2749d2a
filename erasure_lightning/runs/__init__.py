"""The folder of a run: its files, logs and dashboards."""
