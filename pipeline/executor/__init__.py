"""Run a list of independent tasks."""
