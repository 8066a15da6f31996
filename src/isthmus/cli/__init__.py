"""The `isthmus` command."""

from isthmus.cli._app import main as main
from isthmus.cli._app import script as script
