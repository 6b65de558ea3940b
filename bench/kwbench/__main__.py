"""`python -m kwbench` is the command `kwbench`."""

from kwbench.cli.main import main

if __name__ == "__main__":
    main()
