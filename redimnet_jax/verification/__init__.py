"""From a score to a decision: operating points, decisions with their chance of error, and the comparison of files."""
