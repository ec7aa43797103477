"""The labels of a corpus, checked against its voices: doubtful speakers, duplicates, names that do not fit."""
