"""``python -m avvp_dist`` and ``torchrun -m avvp_dist``: the same commands as ``avvp``."""

from avvp_dist.cli import main

if __name__ == "__main__":
    main()
