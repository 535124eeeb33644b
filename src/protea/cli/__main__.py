"""`python -m protea.cli` is `protea`."""

from protea.cli import main

if __name__ == "__main__":
    main()
