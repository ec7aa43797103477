"""A validation loss that means something: classification of held-out recordings of the training speakers.

    python train.py --config=configs/same_speaker_split.py --workdir=runs/split --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1

It is the projection-only recipe with a tenth of every speaker's recordings kept out of training, and answers a
validation loss that stays high and grows while training goes well: such a loss, of speakers whom the heads do not
know, measures nothing. Here utterances are split and not speakers: by session, so that no recording is on both sides;
where a speaker has one recording only, in time with a gap, and it says so. Loss and accuracy of what was kept out are
given for every dimension beside the EER of unseen speakers, which goes on to judge the run. Recordings of other
speakers (`classification.source`) are refused. See docs/explanation/validation.md.

    python train.py --config=configs/same_speaker_split.py:demo --workdir=runs/demo

is the same in minutes on a CPU: the small backbone of the package, and voices that the package makes itself, of three
sessions each, one of which is kept out.

Hardware, time and result on VoxCeleb: those of projection_only.py, and at most 2,000 crops more at the first
validation; not yet measured.
"""

from redimnet_jax.settings import Config
from redimnet_jax.training import config as train_config


def get_config(preset: str | None = None) -> Config:
    """Return the config, or that of the preset 'demo'."""
    config = train_config.default()
    config.model.checkpoint = "weights/b2"
    config.optimizer.learning_rate = 3e-4
    config.classification.share = 0.1
    if train_config.is_preset(preset, "configs/same_speaker_split.py"):
        train_config.use_demo(config)
        config.epochs = 5
    return config
