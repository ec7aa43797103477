"""Artificial rooms: a direct path, an exponential decay, and a folder that reverberation can use."""

import numpy as np
from refusals import refusal

from redimnet_jax.cli import rooms as rooms_command
from redimnet_jax.data import audio
from redimnet_jax.data.augment import Reverberation
from redimnet_jax.data.synthetic import rooms


def test_a_response_begins_with_its_direct_path_and_decays():
    for seed in range(20):
        response = rooms.impulse_response(np.random.default_rng(seed))
        assert response.dtype == np.float32 and response[0] == 1
        assert rooms.MIN_REVERBERATION * 16000 <= len(response) <= rooms.MAX_REVERBERATION * 16000
        energy = np.square(response[1:].astype(np.float64))
        thirds = [part.sum() for part in np.array_split(energy, 3)]
        assert thirds[0] > 10 * thirds[1] > 100 * thirds[2] > 0
        ratio = 10 * np.log10(1 / energy.sum())
        assert -3.1 < ratio < 12.1


def test_the_command_writes_a_folder_that_reverberation_reads(tmp_path):
    folder = tmp_path / "rooms"
    assert rooms_command.main([f"--output={folder}", "--count=3", "--seed=1"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["room0000.wav", "room0001.wav", "room0002.wav"]
    np.testing.assert_array_equal(
        audio.read(folder / "room0002.wav"), rooms.impulse_response(np.random.default_rng([1, 2]))
    )
    click = np.zeros(16000, np.float32)
    click[100] = 1
    wet = Reverberation(p=1.0, folder=str(folder))(click, np.random.default_rng(0))
    # The direct path stays where it was, and a tail follows.
    assert np.argmax(np.abs(wet)) == 100 and np.abs(wet[101:]).max() > 1e-3 and np.abs(wet[:90]).max() < 1e-5


def test_an_existing_folder_is_kept(tmp_path, capsys):
    assert "exists" in refusal(rooms.write_rooms, tmp_path, 1)
