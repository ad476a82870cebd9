"""Start taskq: `python run.py` is the same program as the `taskq` command."""

from taskq.cli import main

if __name__ == "__main__":
    main()
