"""Train a Flax linen network with a cycled rate and momentum; stop anywhere, resume bit for bit.

    python examples/train_linen.py --checkpoints run --steps 150  # stops in the middle of a cycle
    python examples/train_linen.py --checkpoints run --resume     # goes on, to step 480

A range test on scikit-learn's digits reads the bounds between which the rate cycles, by
triangular2; the momentum cycles the other way. An Orbax checkpoint of the ``TrainState`` has their
place in the cycle: the two commands end with the params, rate and momentum of one run of 480 steps,
bit for bit, and 96.8% of the validation images right. 10 s on two CPU cores, jax 0.10.2, optax
0.2.8, flax 0.12.8, orbax-checkpoint 0.12.8.
"""

import argparse
import hashlib
import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState
from sklearn import datasets, model_selection

import optax_clr

BATCH_SIZE = 40
EPOCH = 30  # steps, through the 1,200 images to train on
RISE_STEPS = 2 * EPOCH  # a cycle is four epochs
LOG_STEPS = 40


def load_digits():
    images, labels = datasets.load_digits(return_X_y=True)
    data = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)
    parts = model_selection.train_test_split(*data, test_size=597, random_state=0)
    return parts[::2], parts[1::2]


@jax.jit
def batch_at(data, step):
    """Return the batch of a step. It depends on the step alone: no loader has to be resumed."""
    images, labels = data
    shuffled = jax.random.permutation(jax.random.key(step // EPOCH), len(labels))
    rows = jax.lax.dynamic_slice_in_dim(shuffled, step % EPOCH * BATCH_SIZE, BATCH_SIZE)
    return images[rows], labels[rows]


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        hidden = nn.relu(nn.Dense(128)(images))
        hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
        return nn.Dense(10)(hidden)


def new_state(**hyperparams):
    return TrainState.create(
        apply_fn=Network().apply,
        params=Network().init(jax.random.key(1), jnp.zeros((1, 64)), train=False),
        tx=optax_clr.inject_schedules(optax.sgd)(**hyperparams),
    )


@jax.jit
def train_step(state, batch):
    images, labels = batch
    # A new mask for each step, from what the state has: no key has to be saved.
    key = jax.random.fold_in(jax.random.key(2), state.step)

    def loss_fn(params):
        logits = state.apply_fn(params, images, train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


@jax.jit
def accuracy(state, data):
    images, labels = data
    return jnp.mean(state.apply_fn(state.params, images, train=False).argmax(-1) == labels)


def find_bounds(data):
    """Return the base and the peak that a range test of the training step reads."""
    step_fn = lambda state, batch, rate: train_step(
        optax_clr.set_hyperparams(state, learning_rate=rate), batch
    )
    # An array is a hyperparameter, which can be set; a number would be a constant.
    state = new_state(learning_rate=jnp.float32(0), momentum=0.9)
    rates = jnp.geomspace(1e-4, 3.0, 300)
    result = optax_clr.range_test(step_fn, state, lambda step: batch_at(data, step), rates)
    return [float(bound) for bound in result.bounds()]


def begin(manager, data):
    """Return the state of the latest checkpoint, or else a new one, and its bounds."""
    step = manager.latest_step()
    # Bounds are saved, and not read again: on another machine they could differ by a bit.
    args = ocp.args.Composite(bounds=ocp.args.JsonRestore())
    bounds = find_bounds(data) if step is None else manager.restore(step, args=args).bounds
    print("The rate cycles between {:.4f} and {:.4f}.".format(*bounds))
    state = new_state(
        learning_rate=optax_clr.triangular2_schedule(*bounds, rise_steps=RISE_STEPS),
        momentum=optax_clr.triangular_schedule(0.95, 0.85, rise_steps=RISE_STEPS),
    )
    if step is not None:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(state))
        state = manager.restore(step, args=args).state
    return state, bounds


def train(manager, num_steps):
    """Return the state after ``num_steps``, those before the latest checkpoint included."""
    train_data, valid_data = load_digits()
    state, bounds = begin(manager, train_data)
    for step in range(int(state.step) + 1, num_steps + 1):
        state, loss = train_step(state, batch_at(train_data, step - 1))
        if step % LOG_STEPS == 0:
            live = optax_clr.get_hyperparams(state)
            print(
                f"step {step}: rate {live['learning_rate']:.4f}, momentum {live['momentum']:.4f}, "
                f"loss {loss:.4f}, validation accuracy {accuracy(state, valid_data):.2%}"
            )
        if step % EPOCH == 0 or step == num_steps:
            args = {"state": ocp.args.StandardSave(state), "bounds": ocp.args.JsonSave(bounds)}
            manager.save(step, args=ocp.args.Composite(**args))
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=480, help="stop after so many, in all")
    parser.add_argument("--checkpoints", help="folder; without it, a temporary one")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.checkpoints or tempfile.mkdtemp()).absolute()
    with ocp.CheckpointManager(folder) as manager:
        if arguments.resume == (manager.latest_step() is None):
            parser.error("--resume takes a folder with checkpoints, a new run one without")
        state = train(manager, arguments.steps)
    live = {name: float(value) for name, value in optax_clr.get_hyperparams(state).items()}
    digest = hashlib.sha256(b"".join(jax.device_get(jax.tree.leaves(state.params))))
    print(f"step {state.step}: {live}, params {digest.hexdigest()}")


if __name__ == "__main__":
    main()
