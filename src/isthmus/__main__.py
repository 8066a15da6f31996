"""`python -m isthmus`."""

from isthmus.cli import script

if __name__ == "__main__":
    script()
