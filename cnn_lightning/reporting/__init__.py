"""Figures of a test, images, plots and the HTML report."""
