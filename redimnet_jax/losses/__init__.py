"""Losses over classes and over pairs, the heads of the prefixes, and what training minimises."""
