"""``python -m avvp_dist`` and ``torchrun -m avvp_dist``: the same command line as ``avvp``."""

import sys

from avvp_dist.errors import INTERRUPTED


def main() -> None:
    """Run the command line. Ctrl-C prints no traceback even while modules are being imported."""
    try:
        from avvp_dist.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
