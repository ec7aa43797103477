"""Data that the package makes itself: artificial voices and room responses."""
