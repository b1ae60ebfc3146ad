"""`python -m pipeline`: the command line, see `pipeline/cli/stages.py`."""

import sys

from pipeline.cli.answer import answer


def main() -> None:
    """Run the command line and exit with its code."""
    if not answer(sys.argv[1:], program="stridemill"):
        from pipeline.cli.stages import main as run

        run()


if __name__ == "__main__":
    main()
