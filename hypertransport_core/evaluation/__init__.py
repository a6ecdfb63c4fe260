"""Evaluation on held-out concepts: the judge's measures, the methods compared, and the report."""
