"""Embeddings of recordings: extraction, the cache of pooled features, folders of embeddings."""
