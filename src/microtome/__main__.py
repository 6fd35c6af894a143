"""`python -m microtome` is the command `microtome`."""

from microtome.cli.main import main

if __name__ == "__main__":
    main()
