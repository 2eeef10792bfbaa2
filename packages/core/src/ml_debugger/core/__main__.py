"""`python -m ml_debugger.core`: the command line."""

from ml_debugger.core.cli import main

if __name__ == "__main__":
    main()
