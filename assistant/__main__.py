"""`python -m thumbwise` is the `thumbwise` command, for processes that start it with their own Python."""

from thumbwise.cli.main import main

if __name__ == "__main__":
    main(prog_name="thumbwise")
