"""`python -m zephyrctl`."""

from zephyrctl.cli.app import main

if __name__ == "__main__":
    main()
