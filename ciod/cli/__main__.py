"""``python -m ciod.cli``: as ``python -m ciod``."""

from ciod.cli import main

if __name__ == "__main__":
    main()
