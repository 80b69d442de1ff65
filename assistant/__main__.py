"""`python -m thumbwise` is the `thumbwise` command, for processes that start others with their own Python."""

from thumbwise.cli.main import main

if __name__ == "__main__":
    main(prog_name="thumbwise")
