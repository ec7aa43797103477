"""Galleries of enrolled models: their files, 1:N identification, and the search for the nearest utterances."""
