"""A web page of one run or several, in one file: `write_report`."""

from jaxcnn.report.page import write_report

__all__ = ["write_report"]
