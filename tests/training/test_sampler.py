"""Batches of cached crops: every utterance once, crops in turn, strata alike, the same on any number of devices."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal

from redimnet_jax.training.sampler import EpochSampler, choose_strata

# Compiled as a whole: operation by operation takes longer.
permutation = functools.partial(jax.jit, static_argnums=0)(EpochSampler.permutation)
order = functools.partial(jax.jit, static_argnums=(0, 2))(EpochSampler.order)


@st.composite
def samplers(draw) -> EpochSampler:
    strata = draw(st.sampled_from([1, 2, 3, 4, 8]))
    batch_size = strata * draw(st.sampled_from([1, 2, 3, 6]))
    crops = draw(st.integers(1, 4))
    crops_per_epoch = draw(st.integers(1, crops))
    least = max(strata, -(-batch_size // crops_per_epoch))
    utterances = draw(st.integers(least, least + 20))
    return EpochSampler(utterances, crops, batch_size, draw(st.integers(0, 99)), strata, crops_per_epoch)


def cached_rows(sampler: EpochSampler, epoch: int) -> list[np.ndarray]:
    """Rows of the cache by stratum, in the order of the epoch, without stand-ins for missing utterances."""
    order = np.asarray(permutation(sampler, epoch))
    sizes = [
        len(range(s, sampler.utterances, sampler.strata)) * sampler.crops_per_epoch for s in range(sampler.strata)
    ]
    return [sampler.crop_numbers(s, order[s])[: sizes[s]] for s in range(sampler.strata)]


def batches(sampler: EpochSampler, epoch: int, devices: int) -> np.ndarray:
    """Rows of the cache in every batch, sorted: (steps, batch_size)."""
    streams = sampler.streams(devices)
    rows_of_epoch = np.asarray(order(sampler, epoch, streams))
    rows = np.stack([sampler.crop_numbers(t * sampler.strata // streams, rows_of_epoch[t]) for t in range(streams)])
    return np.sort(rows.reshape(streams, sampler.steps_per_epoch, -1).swapaxes(0, 1).reshape(-1, sampler.batch_size))


@settings(max_examples=12)
@given(samplers(), st.integers(0, 5), st.data())
def test_batches_are_stratified_samples_that_do_not_depend_on_devices(sampler, epoch, data):
    by_stratum = cached_rows(sampler, epoch)
    for stratum, rows in enumerate(by_stratum):
        assert (rows % sampler.utterances % sampler.strata == stratum).all()
    rows = np.concatenate(by_stratum)
    # No row twice, every utterance equally often.
    assert len(np.unique(rows)) == sampler.utterances * sampler.crops_per_epoch
    assert (np.bincount(rows % sampler.utterances, minlength=sampler.utterances) == sampler.crops_per_epoch).all()
    # Batches are full, and draw equally from every stratum.
    whole = batches(sampler, epoch, 1)
    assert whole.shape == (sampler.utterances * sampler.crops_per_epoch // sampler.batch_size, sampler.batch_size)
    for batch in whole % sampler.utterances % sampler.strata:
        assert (np.bincount(batch, minlength=sampler.strata) == sampler.batch_size // sampler.strata).all()
    divisors = [d for d in range(2, sampler.batch_size + 1) if sampler.batch_size % d == 0]
    devices = data.draw(st.sampled_from(divisors or [1]))
    assert sampler.streams(devices) % devices == 0
    np.testing.assert_array_equal(batches(sampler, epoch, devices), whole)


@pytest.mark.parametrize("strata", [1, 4])
def test_crops_take_turns_over_epochs(strata):
    sampler = EpochSampler(37, 3, 4, seed=5, strata=strata)
    epochs = [np.concatenate(cached_rows(sampler, epoch)) for epoch in range(3)]
    assert len(np.unique(np.concatenate(epochs))) == 3 * 37
    assert (epochs[0] % 37 != epochs[1] % 37).any()
    # Crops are mixed within an epoch.
    assert len(np.unique(epochs[0] // 37)) == 3
    other = EpochSampler(37, 3, 4, seed=6, strata=strata)
    assert (np.asarray(permutation(other, 0)) != np.asarray(permutation(sampler, 0))).any()


def test_a_traced_epoch_gives_the_same_order():
    sampler = EpochSampler(37, 2, 6, seed=5, strata=2)
    np.testing.assert_array_equal(order(sampler, 3, 6), sampler.order(3, 6))


def test_numbers_that_do_not_fit_are_refused():
    assert "8 is no multiple of the 3 strata" in refusal(EpochSampler, 37, 2, 8, 0, 3)
    assert "exceeds the 37 crops" in refusal(EpochSampler, 37, 2, 64, 0)
    assert "fewer than the 64 strata" in refusal(EpochSampler, 37, 2, 64, 0, 64)
    assert "no multiple of the 5 devices" in refusal(EpochSampler(37, 2, 8, 0).streams, 5)


def test_strata_are_the_same_on_any_devices_that_divide_them():
    assert [choose_strata(256, devices) for devices in (1, 2, 8, 64)] == [64] * 4
    assert [choose_strata(*numbers) for numbers in ((40, 1), (24, 3), (7, 1))] == [8, 3, 1]
