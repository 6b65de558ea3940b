"""`python -m kwbench` and the installed script: the command `kwbench`."""


def main() -> None:
    """Run the command line. Ctrl-C during its imports ends it like any later one."""
    try:
        from kwbench.cli.main import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
