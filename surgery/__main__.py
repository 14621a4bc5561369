"""`python -m surgery` is the console script `surgery`."""

from surgery.cli.main import run

if __name__ == "__main__":
    run()
