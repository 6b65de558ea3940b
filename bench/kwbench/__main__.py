"""`python -m kwbench` and the installed script: the command `kwbench`."""

import signal
from contextlib import suppress


def main() -> None:
    """Run the command line. Ctrl-C during its imports ends it like any later one, and so do SIGTERM and SIGHUP at any time."""
    for name in ("SIGTERM", "SIGHUP"):
        with suppress(AttributeError, ValueError):  # Windows has no SIGHUP
            number = getattr(signal, name)
            # `nohup` has it ignored, which stays so.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
    try:
        from kwbench.cli.main import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
