"""Can the ratio of Muon's two rates be read from range tests side by side? Not here.

    python examples/muon_rates.py              # a minute; 5 seeds
    python examples/muon_rates.py --seeds 10   # three minutes; the numbers below

Muon updates the matrices of the hidden layers, Adam the head and the biases, at a rate of its own.
A range test moves both together, at a fixed ratio of Adam's rate to Muon's: the tests of six ratios
and all seeds are one compiled program, `jax.vmap` twice over `lr_range_test`, with a held-out
batch. Then each ratio trains one cycle, up to the peak that its tests read together, to four times
that and to 0.4. A small network, scikit-learn's digits: each seed splits them into 900 to train on,
300 held out for its test and 597 to validate. Training has seeds of its own. Values are mean ± sd,
differences mean ± 2 standard errors; after training they are validation losses.

range tests     suggest()   times the ratio   lowest held-out   lowest in
ratio 0.01        0.00524           0.00005     0.332 ± 0.054           5
ratio 0.03        0.00516           0.00015     0.332 ± 0.055           4
ratio 0.1         0.00516           0.00052     0.336 ± 0.054           1
ratio 0.3         0.00507           0.00152     0.354 ± 0.053           0
ratio 1           0.00470           0.00470     0.410 ± 0.066           0
ratio 3           0.00437           0.01311     0.498 ± 0.066           0
The tests pick 0.03; within the noise of it: 0.01.

600 steps         at 4 x the peak    at 1 x the peak  at 0.4 x the peak
ratio 0.01        0.4196 ± 0.1521    0.0975 ± 0.0298    0.1245 ± 0.0154
ratio 0.03        0.4371 ± 0.1292    0.0986 ± 0.0287    0.1276 ± 0.0155
ratio 0.1         0.4978 ± 0.1159    0.1037 ± 0.0330    0.1273 ± 0.0154
ratio 0.3         0.4187 ± 0.1140    0.1022 ± 0.0284    0.1308 ± 0.0154
ratio 1           0.3859 ± 0.1363    0.0977 ± 0.0295    0.1512 ± 0.0154
ratio 3           0.3759 ± 0.0729    0.0946 ± 0.0225    0.1737 ± 0.0174
At 4 x the peak the best is 3; within the noise of it: 0.01, 0.03, 0.3, 1.
  The tests' pick is +0.0612 ± 0.0882 above it.
At 1 x the peak the best is 3; within the noise of it: 0.01, 0.03, 0.1, 0.3, 1.
  The tests' pick is +0.0040 ± 0.0065 above it.
At 0.4 x the peak the best is 0.01; within the noise of it: none.
  The tests' pick is +0.0031 ± 0.0003 above it.

10 seeds, jax 0.10.2, optax 0.2.8, cpu.

The rate that is read is Muon's: it is the same within a fifth while Adam's varies 260 times. The
tests go lower the lower the ratio is, down to 0.03, and rule out 0.1 and above. Training does not
agree: at the peak as read, where it is best, no ratio from 0.01 to 3 can be told from another. At
four times that peak, which is what the curve says by itself (docs/pages/optimizer-kinds.md), every
training is spoilt, and at 0.4 of it the low ratios are ahead, as in the tests. So on this task the
rate of the matrices matters, by four times in the loss, the ratio hardly, and the test can tell
neither which ratio, nor that it does not matter.
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from sklearn import datasets

import optax_clr

RATIOS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
PARTS_OF_PEAK = [4.0, 1.0, 0.4]
BATCH_SIZE = 32
AVERAGED_DECADES = 0.1  # standard deviation of the Gaussian that averages a held-out curve


# ----------------------------------------------------------------------------------------- data


def split(key):
    """Return (images, labels) to train on, 900, to hold out, 300, and to validate with, 597."""
    images, labels = datasets.load_digits(return_X_y=True)
    digits = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)
    rows = jax.random.permutation(key, len(labels))
    parts = rows[:900], rows[900:1200], rows[1200:]
    return [jax.tree.map(lambda array, part=part: array[part], digits) for part in parts]


def sample(data, key, step):
    """Return the batch of a step: random rows, picked on the device while the program runs."""
    rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH_SIZE,), 0, len(data[1]))
    return jax.tree.map(lambda array: array[rows], data)


# --------------------------------------------------------------------- network and its two rates


network = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10, name="head")])


def new_params(key):
    return network.init(key, jnp.zeros((1, 64)))


def loss_fn(params, batch):
    images, labels = batch
    logits = network.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def labels_of(params):
    """Return "muon" for the matrices of the hidden layers, "adam" for the head and the biases."""

    def label(path, leaf):
        names = [key.key for key in path]
        return "muon" if leaf.ndim == 2 and "head" not in names else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def two_rates(rate, ratio):
    """Return Muon at a rate, a number or a schedule, with Adam at ``ratio`` times that rate."""
    # muon's own adam_learning_rate is newer than Optax 0.2.5, and takes the head for a matrix.
    slower = (lambda step: ratio * rate(step)) if callable(rate) else ratio * rate
    return optax.partition({"muon": contrib.muon(rate), "adam": optax.adam(slower)}, labels_of)


# ---------------------------------------------------------------------------- tests and training


def surface(ratios, seeds, num_steps):
    """Return the range tests of all ratios and seeds, ``[num_ratios, num_seeds]``."""

    def run(ratio, seed):
        start_key, batch_key, split_key = jax.random.split(jax.random.key(seed), 3)
        train_data, held_out, _ = split(split_key)
        return optax_clr.lr_range_test(
            loss_fn,
            new_params(start_key),
            lambda rate: two_rates(rate, ratio),
            lambda step: sample(train_data, batch_key, step),
            num_steps=num_steps,
            held_out=held_out,
        )

    return jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(ratios, seeds)


def lowest_averages(result):
    """Return the lowest held-out loss of each test, averaged over log rates."""
    rates = np.fmax.reduce(result.learning_rates, axis=(0, 1))  # a test that ended early has NaN
    reached = np.isfinite(rates)
    rates, losses = rates[reached], np.asarray(result.held_out_losses)[..., reached]
    weights = np.exp(-0.5 * (np.log10(rates[:, None] / rates) / AVERAGED_DECADES) ** 2)
    known = np.isfinite(losses)
    # In logs, so that the losses just before divergence do not drown the others.
    logs = np.where(known, np.log(losses), 0) @ weights / np.maximum(known @ weights, 1e-30)
    return np.exp(np.where(known, logs, np.inf).min(-1))


def train(ratios, peaks, seeds, num_steps):
    """Return validation losses after one cycle, ``[num_ratios, num_parts, num_seeds]``."""

    def run(ratio, peak, seed):
        start_key, batch_key, split_key = jax.random.split(jax.random.key(seed), 3)
        train_data, _, valid_data = split(split_key)
        optimizer = two_rates(optax_clr.one_cycle_schedule(peak, num_steps), ratio)

        def step_fn(carry, step):
            params, state = carry
            gradients = jax.grad(loss_fn)(params, sample(train_data, batch_key, step))
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = new_params(start_key)
        carry = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step_fn, carry, jnp.arange(num_steps))
        return loss_fn(params, valid_data)

    with_every_seed = jax.vmap(run, (None, None, 0))
    with_every_peak = jax.vmap(with_every_seed, (None, 0, None))
    losses = jax.jit(jax.vmap(with_every_peak, (0, 0, None)))(ratios, peaks, seeds)
    return np.asarray(losses)


# ---------------------------------------------------------------------------------------- output


def shown(values, decimals):
    return f"{values.mean():.{decimals}f} ± {values.std(ddof=1):.{decimals}f}"


def excess(losses, reference):
    """Return how far losses are above the reference: the mean, and two standard errors."""
    # Seed by seed: what a start or its batches do to both cancels.
    above = losses - reference
    return above.mean(-1), 2 * above.std(-1, ddof=1) / np.sqrt(above.shape[-1])


def level(ratios, losses, best):
    """Return, in words, the ratios whose losses are within the noise of the best."""
    means, errors = excess(losses, losses[best])
    rows = [row for row in np.flatnonzero(means <= errors) if row != best]
    return ", ".join(f"{ratios[row]:g}" for row in rows) or "none"


def print_tests(ratios, suggestions, lowest):
    """Print what the tests of each ratio read, and at how many seeds each goes lowest."""
    picked = np.bincount(np.argmin(lowest, axis=0), minlength=len(ratios))
    print("range tests     suggest()   times the ratio   lowest held-out   lowest in")
    for row, ratio in enumerate(ratios):
        print(
            f"ratio {ratio:<8g}{suggestions[row]:>11.5f}{ratio * suggestions[row]:>18.5f}"
            f"{shown(lowest[row], 3):>18}{picked[row]:>12}"
        )
    pick = np.argmin(lowest.mean(1))
    print(
        f"The tests pick {ratios[pick]:g}; within the noise of it: {level(ratios, lowest, pick)}."
    )


def print_trained(ratios, lowest, losses, num_steps):
    """Print what training came to, and whether the tests' pick is the best ratio."""
    headings = [f"at {part:g} x the peak" for part in PARTS_OF_PEAK]
    print(f"\n{f'{num_steps} steps':14}" + "".join(f"{heading:>19}" for heading in headings))
    for ratio, columns in zip(ratios, losses, strict=True):
        print(f"ratio {ratio:<8g}" + "".join(f"{shown(column, 4):>19}" for column in columns))
    pick = np.argmin(lowest.mean(1))
    for column, heading in enumerate(headings):
        best = np.nanargmin(losses[:, column].mean(1))
        above, error = excess(losses[pick, column], losses[best, column])
        print(
            f"{heading.capitalize()} the best is {ratios[best]:g}; "
            f"within the noise of it: {level(ratios, losses[:, column], best)}.\n"
            f"  The tests' pick is {above:+.4f} ± {error:.4f} above it."
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--test-steps", type=int, default=300, help="steps of each range test")
    parser.add_argument("--steps", type=int, default=600, help="steps of a training")
    parser.add_argument("--seeds", type=int, default=5, help="of tests and runs, 2 or more")
    arguments = parser.parse_args()
    started = time.perf_counter()
    ratios, seeds = jnp.array(arguments.ratios), jnp.arange(arguments.seeds)

    result = surface(ratios, seeds, arguments.test_steps)
    lowest = lowest_averages(result)
    # One answer for each ratio, read from its seeds together.
    print_tests(arguments.ratios, jax.vmap(lambda tests: tests.suggest())(result), lowest)
    peaks = jax.vmap(lambda tests: tests.one_cycle_peak())(result)
    peaks = peaks[:, None] * jnp.array(PARTS_OF_PEAK)
    # Training has seeds of its own.
    losses = train(ratios, peaks, seeds + len(seeds), arguments.steps)
    print_trained(arguments.ratios, lowest, losses, arguments.steps)
    print(
        f"\n{arguments.seeds} seeds, {time.perf_counter() - started:.0f} s in all, "
        f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].platform}."
    )


if __name__ == "__main__":
    main()
