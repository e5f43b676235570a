"""``python -m avvp_dist`` and ``torchrun -m avvp_dist``: the same commands as ``avvp``."""

import sys

from avvp_dist.errors import INTERRUPTED


def main() -> None:
    """Runs the command line; Ctrl-C ends it without a traceback while its modules are imported, too."""
    try:
        from avvp_dist.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
