"""Audio, corpora and batches; this package knows no network."""
