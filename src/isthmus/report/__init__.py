"""From a run folder to a page that explains it, and to chart files; needs no torch."""

from isthmus.report._page import build_page as build_page
from isthmus.report._page import save_charts as save_charts
from isthmus.report._page import write_page as write_page

__all__ = ["build_page", "write_page", "save_charts"]
