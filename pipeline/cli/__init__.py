"""The command line: compose the config, run its stages, report."""
