"""``python -m ciod``: the command line, where the script ``ciod`` is not on the path."""

from ciod.cli import main

if __name__ == "__main__":
    main()
