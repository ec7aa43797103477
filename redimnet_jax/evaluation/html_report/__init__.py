"""report.html: one file with figures, tables and recordings, which needs neither a server nor a network.

The figures are SVG that Python computes and a template draws, so that they take a few kilobytes, print, follow the
colours of the page, and are there without JavaScript. The script moves the operating point.
"""

from redimnet_jax.evaluation.html_report.page import Report, write

__all__ = ["Report", "write"]
