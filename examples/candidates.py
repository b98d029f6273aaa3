"""Does it pay to begin four trainings, and to go on with the one that does best on held-out data?

    python examples/candidates.py              # a minute; 10 seeds
    python examples/candidates.py --seeds 30   # three minutes; the numbers below

Four ways to train begin from the same start: AdamW in one cycle and by warm-up, stable, decay, both
up to what `peak_for()` reads from a range test; Prodigy with a cosine decay; schedule-free AdamW at
`suggest()` of a test of its own. The tests, the trainings and all seeds are one compiled program. A
small network, scikit-learn's digits: each seed splits them into 900 to train on, 300 held out,
which the pick goes by, and 597 to validate with. Each seed reads its tests, and picks, alone.
Values are mean ± sd, differences mean ± 2 standard errors.

loss             held out, short 300     at 300 of 1200         at the end         validation
Prodigy, cosine      0.1162 ± 0.0483    0.1556 ± 0.0871    0.1233 ± 0.0613    0.1023 ± 0.0322
WSD                  0.1124 ± 0.0402    0.1330 ± 0.0541    0.1118 ± 0.0543    0.1038 ± 0.0288
one cycle            0.1099 ± 0.0433    0.1776 ± 0.0736    0.1037 ± 0.0505    0.0937 ± 0.0251
schedule-free        0.1365 ± 0.0453    0.1365 ± 0.0453    0.1386 ± 0.0632    0.1345 ± 0.0369

Picked by short trainings of 300: Prodigy, cosine in 9, WSD in 9, one cycle in 12.
Validation loss of the picks: 0.1003 ± 0.0290. Above that of each alone:
  Prodigy, cosine  -0.0020 ± 0.0045, -2%
  WSD              -0.0036 ± 0.0034, -3%
  one cycle        +0.0065 ± 0.0050, +7%
  schedule-free    -0.0343 ± 0.0048, -25%
The picks are worse than the best single choice, one cycle.

Picked by step 300 of 1200: Prodigy, cosine in 7, WSD in 15, one cycle in 2, schedule-free in 6.
Validation loss of the picks: 0.1082 ± 0.0311. Above that of each alone:
  Prodigy, cosine  +0.0059 ± 0.0066, +6%
  WSD              +0.0043 ± 0.0057, +4%
  one cycle        +0.0144 ± 0.0081, +15%
  schedule-free    -0.0264 ± 0.0070, -20%
The picks are worse than the best single choice, one cycle.

Picked by the last step: Prodigy, cosine in 4, WSD in 6, one cycle in 19, schedule-free in 1.
Validation loss of the picks: 0.0960 ± 0.0248. Above that of each alone:
  Prodigy, cosine  -0.0063 ± 0.0064, -6%
  WSD              -0.0079 ± 0.0047, -8%
  one cycle        +0.0022 ± 0.0045, +2%
  schedule-free    -0.0386 ± 0.0075, -29%
The picks cannot be told from the best single choice, one cycle.

30 seeds, jax 0.10.2, optax 0.2.8, cpu.

Not for the best result. The best of four trainings of 300 steps, trained anew for 1,200, has 7%
more loss than one cycle alone; it is better than WSD and schedule-free AdamW, and level with
Prodigy. After 600 steps of 2,400 (--short 600 --steps 2400) such picks are level with one cycle, 8%
below Prodigy and 7% below WSD. To look at the long trainings at step 300 saves the short ones, but
is worse: one cycle, the best in the end, is near its peak there, and is picked in 2 of 30. Even
training all four to the end, 4,800 steps, cannot be told from one cycle. What picking does is guard
against the worst: it comes to 20 to 29% less loss than schedule-free AdamW.

That one cycle is the best single choice is known from these same seeds, which flatters it: in the
first 10 alone Prodigy has 0.0918 and one cycle 0.0920, and the picks of short trainings cannot be
told from either. 300 held-out images are few. The range tests are not counted in the steps: Prodigy
needs none, one cycle and WSD share one of 300 steps, schedule-free AdamW has another.
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

BATCH_SIZE = 32
TEST_STEPS = 300
WEIGHT_DECAY = 0.01


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


# --------------------------------------------------------------------------------------- network


network = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(10)])


def new_params(key):
    return network.init(key, jnp.zeros((1, 64)))


def loss_fn(params, batch):
    images, labels = batch
    logits = network.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# ------------------------------------------------------------------------------------ candidates


def adamw(rate):
    return optax.adamw(rate, weight_decay=WEIGHT_DECAY)


def schedule_free(rate):
    return contrib.schedule_free_adamw(rate, weight_decay=WEIGHT_DECAY)


def one_cycle(peak, num_steps):
    return optax_clr.one_cycle_schedule(peak, num_steps)


def warmup_stable_decay(peak, num_steps):
    return optax_clr.warmup_stable_decay_schedule(
        peak, num_steps, warmup_steps=num_steps // 10, decay_steps=num_steps // 5
    )


def candidates(adamw_test, schedule_free_test, num_steps):
    """Return the optimizer of each candidate, by its name."""

    def tested(shape):
        return shape(adamw_test.peak_for(shape(1.0, num_steps), num_steps), num_steps)

    # Prodigy gives NaN at a rate of 0: its schedule begins at 1.
    cosine = optax.cosine_decay_schedule(1.0, num_steps)
    return {
        "one cycle": adamw(tested(one_cycle)),
        "WSD": adamw(tested(warmup_stable_decay)),
        "Prodigy, cosine": contrib.prodigy(cosine, weight_decay=WEIGHT_DECAY),
        "schedule-free": schedule_free(schedule_free_test.suggest()),
    }


def evaluated(params, state):
    """Return the params to evaluate, which are averages if the optimizer is schedule-free."""
    if isinstance(state, contrib.ScheduleFreeState):
        return contrib.schedule_free_eval_params(state, params)
    return params


# -------------------------------------------------------------------------------------- training


def train(optimizer, params, batches, held_out, num_steps, look_every):
    """Return the params after the last step, and the held-out loss after each part."""

    def step_fn(carry, step):
        params, state = carry
        gradients = jax.grad(loss_fn)(params, batches(step))
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def part(carry, steps):
        carry, _ = jax.lax.scan(step_fn, carry, steps)
        return carry, loss_fn(evaluated(*carry), held_out)

    parts = jnp.arange(num_steps).reshape(-1, look_every)
    carry, held_out_losses = jax.lax.scan(part, (params, optimizer.init(params)), parts)
    return evaluated(*carry), held_out_losses


def train_all(seeds, short, num_steps):
    """Return the losses of all candidates and seeds, by name, each ``f32[num_seeds]``.

    They are the held-out losses after a short training, at the same step of the long one and at
    its end, and the validation loss at the end.
    """

    def run(seed):
        start_key, batch_key, split_key, test_key = jax.random.split(jax.random.key(seed), 4)
        train_data, held_out, valid_data = split(split_key)
        params = new_params(start_key)

        def test(optimizer):
            return optax_clr.lr_range_test(
                loss_fn, params, optimizer, lambda step: sample(train_data, test_key, step),
                num_steps=TEST_STEPS,
            )  # fmt: skip

        def batches(step):
            return sample(train_data, batch_key, step)

        tests = test(adamw), test(schedule_free)
        losses = {}
        # A branch for each: their states differ, and `jax.lax.switch` would want them padded to
        # one form. Under `jax.vmap` it would also compute all the branches, for every lane.
        for name, optimizer in candidates(*tests, short).items():
            _, (after_short,) = train(optimizer, params, batches, held_out, short, short)
            losses[name] = [after_short]
        for name, optimizer in candidates(*tests, num_steps).items():
            trained, looks = train(optimizer, params, batches, held_out, num_steps, short)
            losses[name] += [looks[0], looks[-1], loss_fn(trained, valid_data)]
        return losses

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(seeds))


# ---------------------------------------------------------------------------------------- output


def shown(values):
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"


def counts(names, picks):
    """Return, in words, at how many seeds each candidate is picked."""
    picked = np.bincount(picks, minlength=len(names))
    return ", ".join(f"{name} in {n}" for name, n in zip(names, picked, strict=True) if n)


def print_losses(losses, short, num_steps):
    """Print the losses of each candidate; its held-out losses are what a pick goes by."""
    headings = f"held out, short {short}", f"at {short} of {num_steps}", "at the end", "validation"
    print(f"{'loss':17}" + "".join(f"{heading:>19}" for heading in headings))
    for name, columns in losses.items():
        print(f"{name:17}" + "".join(f"{shown(column):>19}" for column in columns))


def print_picks(losses, short, num_steps):
    """Print what each way of picking comes to, and whether it is better than a single choice."""
    names = list(losses)
    *looks, final = np.moveaxis(np.array(list(losses.values())), 1, 0)
    looks = [np.where(np.isfinite(look), look, np.inf) for look in looks]
    best = int(np.nanargmin(final.mean(1)))
    ways = f"short trainings of {short}", f"step {short} of {num_steps}", "the last step"
    for way, look in zip(ways, looks, strict=True):
        picks = np.argmin(look, axis=0)
        picked = final[picks, np.arange(final.shape[1])]
        print(f"\nPicked by {way}: {counts(names, picks)}.")
        print(f"Validation loss of the picks: {shown(picked)}. Above that of each alone:")
        for name, alone in zip(names, final, strict=True):
            above = picked - alone
            error = 2 * above.std(ddof=1) / np.sqrt(len(above))
            percent = 100 * above.mean() / alone.mean()
            print(f"  {name:17}{above.mean():+.4f} ± {error:.4f}, {percent:+.0f}%")
        above = picked - final[best]
        error = 2 * above.std(ddof=1) / np.sqrt(len(above))
        verdict = "cannot be told from"
        if abs(above.mean()) > error:
            verdict = "are better than" if above.mean() < 0 else "are worse than"
        print(f"The picks {verdict} the best single choice, {names[best]}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", type=int, default=300, help="steps before the pick")
    parser.add_argument("--steps", type=int, default=1200, help="of a training: a multiple")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.steps % arguments.short or arguments.seeds < 2:
        parser.error("--steps must be a multiple of --short, and --seeds at least 2")

    started = time.perf_counter()
    losses = train_all(jnp.arange(arguments.seeds), arguments.short, arguments.steps)
    print_losses(losses, arguments.short, arguments.steps)
    print_picks(losses, arguments.short, arguments.steps)
    print(
        f"\n{arguments.seeds} seeds, {time.perf_counter() - started:.0f} s in all, "
        f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].platform}."
    )


if __name__ == "__main__":
    main()
