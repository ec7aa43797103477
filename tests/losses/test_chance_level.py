"""Loss at random and lowest loss, against samples, closed forms and searches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redimnet_jax.losses.chance_level import LossLevels, levels
from redimnet_jax.losses.classification import AAMSoftmax, AMSoftmax, SphereFace2, SubcenterAAM
from redimnet_jax.losses.pairs import GE2E, AngularPrototypical, SupervisedContrastive, Triplet

BATCH = {"speakers": 6, "crops": 3}


@pytest.mark.slow
@pytest.mark.parametrize("loss", [AAMSoftmax(), SubcenterAAM(), SphereFace2()], ids=str)
def test_random_level_is_the_mean_over_many_embeddings_and_prototypes(loss):
    """An independent, larger sample, with prototypes drawn anew."""
    rng, classes, dim, values = np.random.default_rng(5), 300, 24, []
    jitted = jax.jit(loss)
    for seed in range(6):
        parameters = loss.parameters(classes, dim, jax.random.key(100 + seed))
        embeddings = rng.standard_normal((1024, dim)).astype(np.float32)
        values.append(float(jitted(embeddings, rng.integers(0, classes, 1024), parameters)))
    found = levels(loss, classes, dim, margin=loss.margin, **BATCH).random
    error = np.std(values) / np.sqrt(len(values))
    assert found == pytest.approx(np.mean(values), abs=3 * error + 0.02 * np.mean(values))


def test_random_level_without_margin_and_scale_is_the_entropy():
    """At a tiny scale all classes are alike."""
    found = levels(AMSoftmax(margin=0.0, scale=1e-3), 50, 8, margin=0.0, **BATCH)
    assert found.random == pytest.approx(np.log(50), rel=1e-3) and found.lowest == pytest.approx(np.log(50), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [AAMSoftmax(margin=0.3, scale=4.0), SphereFace2(scale=4.0)], ids=str)
def test_nothing_is_found_below_the_lowest(loss):
    """Descent on embeddings and prototypes ends at the level, which it never passes."""
    import optax

    classes, dim = 5, 4
    lowest = loss.lowest(classes, loss.margin, **BATCH)
    free = (jax.random.normal(jax.random.key(1), (classes, dim)), loss.parameters(classes, dim, jax.random.key(2)))
    optimiser = optax.adam(0.05)

    @jax.jit
    def descend(free):
        def step(carry, _):
            free, state = carry
            value, gradient = jax.value_and_grad(lambda free: loss(free[0], jnp.arange(classes), free[1]))(free)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(free, updates), state), value

        return jax.lax.scan(step, (free, optimiser.init(free)), length=1500)[1]

    values = np.asarray(descend(free))
    assert values.min() > lowest * (1 - 1e-4)
    assert values[-1] == pytest.approx(lowest, rel=1e-2)


def test_lowest_of_aam_softmax_in_closed_form():
    """Target cos(margin), the others -1 / (classes - 1)."""
    for classes, margin, scale in ((2, 0.0, 5.0), (10, 0.2, 8.0), (100, 0.5, 30.0)):
        loss = AAMSoftmax(margin, scale)
        wanted = np.log1p((classes - 1) * np.exp(scale * (-1 / (classes - 1) - np.cos(margin))))
        assert loss.lowest(classes, margin, **BATCH) == pytest.approx(wanted, rel=1e-4, abs=2e-6)


@pytest.mark.slow
def test_levels_of_losses_over_pairs():
    """Six speakers on the corners of a simplex have cosines of -1/5."""
    options = {"margin": 0.2, **BATCH}
    triplet = levels(Triplet(), 100, 8, **options)
    # The nearest negative beyond a positive is within the margin; the nearest of all is before it.
    assert triplet.lowest == 0.0 and 0.02 < triplet.random < 0.2
    assert levels(Triplet(mining="hard"), 100, 8, **options).random > 0.5
    contrastive = levels(SupervisedContrastive(temperature=0.5), 100, 8, **options)
    assert contrastive.lowest == pytest.approx(np.log(2 * np.exp(2) + 15 * np.exp(-0.4)) - 2, rel=1e-5)
    # Nothing but chance among 17 others, and a little for the spread of the cosines.
    assert np.log(17) < contrastive.random < np.log(17) + 0.5
    for loss in (GE2E(scale=0.01), AngularPrototypical(scale=0.01)):
        found = levels(loss, 100, 8, **options)
        assert found.lowest == 0.0 and found.random == pytest.approx(np.log(6), abs=0.01)


@pytest.mark.slow
def test_what_the_user_reads():
    line = LossLevels(AAMSoftmax(), 1000, (16, 64), 6, 3).description()
    random = [levels(AAMSoftmax(), 1000, dim, margin=0.2, **BATCH).random for dim in (16, 64)]
    assert random[0] > random[1]
    assert "1,000 classes" in line and "margin 0.2" in line
    assert f"16: {random[0]:.3g} / " in line and f"64: {random[1]:.3g} / " in line
    assert "batches of 6 x 3" in LossLevels(Triplet(), 1000, (16,), 6, 3).description()


def test_a_loss_above_the_random_one():
    """The margin of the epoch counts: what is poor with none is good with the full one."""
    of = LossLevels(AAMSoftmax(), 1000, (16,), 6, 3)
    low, full = (of.at(margin)[16].random for margin in (0.0, 0.2))
    assert low < full
    between = {"16": (low + full) / 2}
    assert of.warning(between, 0.2) is None
    told = of.warning(between, 0.0)
    assert "above that of random embeddings" in told and "16: " in told
