"""The report: JSON in, one self-contained HTML file out."""
