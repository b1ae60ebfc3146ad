"""`python -m pipeline`: the command line, see `pipeline/cli/stages.py`."""

from pipeline.cli.stages import main

if __name__ == "__main__":
    main()
