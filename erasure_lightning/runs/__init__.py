"""The folder of a run, its log, and the dashboards it writes to."""
