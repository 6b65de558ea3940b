"""The web pages: leaderboards, a page for each evaluation, and the comparison of two models. Everything works from a folder."""

from kwbench.report.html.site import leaderboard_page, site

__all__ = ["leaderboard_page", "site"]
