"""Networks: from a `model_config` to a speaker model that embeds waveforms."""
