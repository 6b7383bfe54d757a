"""`python -m tristep` is `tristep`."""

from tristep.cli import main

if __name__ == "__main__":
    main()
