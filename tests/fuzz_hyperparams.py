"""Fuzzing of hyperparameters: any nesting of Optax's wrappers, against what was built into it."""

import contextlib
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import optax_clr
from strategies import cases

PARAMS = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
LABELS = {"bias": "first", "kernel": "second"}
SCHEDULES = {
    "triangular": optax_clr.triangular_schedule(0.1, 0.5, 3),
    "restarts": optax_clr.warm_restarts_schedule(0.4, 5, mult=2),
    "of epochs": optax_clr.per_epoch_schedule(
        optax_clr.one_cycle_schedule(0.9, 10, init_value=0.1, end_value=0.2), 3
    ),
    "of optax": optax.linear_schedule(0.2, 0.9, 20),
    "of the user": lambda step: 1 / (step + 2),
}
numbers = st.sampled_from([0.125, 0.25, 0.3])


@pytest.fixture(autouse=True, scope="module")
def _promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


class Entry(NamedTuple):
    """A hyperparameter somewhere in an optimizer; ``every`` calls are one update of it."""

    name: str
    value: Any  # a number, or the name of a schedule
    every: int

    def at(self, step):
        is_number = not isinstance(self.value, str)
        return np.float32(self.value if is_number else SCHEDULES[self.value](jnp.int32(step)))

    @property
    def is_scheduled(self):
        return isinstance(self.value, str)


class Tree(NamedTuple):
    """An optimizer, to be built, and what is in it."""

    text: str
    build: Callable
    entries: tuple = ()
    every: int = 1  # calls after which each part was updated
    has_counter: bool = False

    def __repr__(self):
        return self.text


def given_as(value):
    return SCHEDULES[value] if isinstance(value, str) else jnp.float32(value)


varying = st.one_of(numbers, st.sampled_from(list(SCHEDULES)))


@st.composite
def leaves(draw):
    kind = draw(st.sampled_from([
        "sgd", "adam", "lion", "rmsprop", "contrib", "plain", "bare", "scale_by", "clip"
    ]))  # fmt: skip
    rate = draw(varying)
    if kind == "clip":
        return Tree("clip", lambda: optax.clip(1.0))
    if kind == "bare":
        return Tree("adam(0.1)", lambda: optax.adam(0.1))
    if kind == "contrib":
        return draw(of_contrib())
    if kind == "scale_by":
        name = draw(st.sampled_from(list(SCHEDULES)))
        build = lambda: optax.scale_by_schedule(SCHEDULES[name])
        return Tree(f"scale_by_schedule({name})", build, has_counter=True)
    if kind == "plain":  # of which every number is a hyperparameter
        momentum = draw(numbers)
        plain = lambda: optax.inject_hyperparams(optax.sgd)(given_as(rate), momentum=momentum)
        entries = Entry("learning_rate", rate, 1), Entry("momentum", momentum, 1)
        return Tree(f"inject_hyperparams(sgd)({rate}, {momentum})", plain, entries, 1, True)
    given_values = {"learning_rate": rate}
    if kind == "sgd" and draw(st.booleans()):
        given_values["momentum"] = draw(varying)
    if kind in ("adam", "lion") and draw(st.booleans()):
        given_values["b1"] = draw(varying)
    if kind == "adam" and draw(st.booleans()):
        given_values["eps"] = draw(varying)
    if kind == "rmsprop" and draw(st.booleans()):
        given_values["decay"] = draw(varying)
    factory = getattr(optax, kind)

    def build():
        arguments = {name: given_as(value) for name, value in given_values.items()}
        return optax_clr.inject_schedules(factory)(**arguments)

    entries = tuple(Entry(name, value, 1) for name, value in given_values.items())
    return Tree(f"inject_schedules({kind})({given_values})", build, entries, 1, True)


# Optimizers of optax.contrib whose update needs nothing but gradients and params.
CONTRIB = [
    name
    for name in ("acprop", "adopt", "ademamix", "cocob", "dadapt_adamw", "dog", "dowg", "muon",
                 "prodigy", "madgrad", "simplified_ademamix", "schedule_free_sgd")
    if hasattr(optax.contrib, name)
]  # fmt: skip
# Those that count for a schedule, whether or not they were given one.
COUNTING = {"ademamix", "dadapt_adamw", "prodigy", "madgrad", "simplified_ademamix",
            "schedule_free_sgd"}  # fmt: skip


@st.composite
def of_contrib(draw):
    name, rate = draw(st.sampled_from(CONTRIB)), draw(varying)
    factory = getattr(optax.contrib, name)
    if draw(st.booleans()):  # the schedule passed to Optax itself
        given = SCHEDULES.get(rate, 0.1)
        has_counter = isinstance(rate, str) or name in COUNTING
        return Tree(f"contrib.{name}({rate})", lambda: factory(given), has_counter=has_counter)
    build = lambda: optax_clr.inject_schedules(factory)(learning_rate=given_as(rate))
    entries = (Entry("learning_rate", rate, 1),)
    return Tree(f"inject_schedules(contrib.{name})({rate})", build, entries, 1, True)


def together(text, build, parts, has_counter=False):
    return Tree(
        f"{text}({', '.join(part.text for part in parts)})",
        lambda: build(*(part.build() for part in parts)),
        tuple(entry for part in parts for entry in part.entries),
        math.lcm(*(part.every for part in parts)),
        has_counter or any(part.has_counter for part in parts),
    )


def every_step(optimizer, k):
    return optax.MultiSteps(optimizer, k).gradient_transformation()


@st.composite
def wrapped(draw, trees):
    kind = draw(st.sampled_from([
        "chain", "partition", "MultiSteps", "masked", "inject", "finite", "averaged", "mechanic"
    ]))  # fmt: skip
    if kind == "chain":
        return together("chain", optax.chain, draw(st.lists(trees, min_size=1, max_size=3)))
    if kind == "partition":
        split = lambda *both: optax.partition(dict(zip(["first", "second"], both, strict=True)),
                                              LABELS)  # fmt: skip
        return together("partition", split, [draw(trees), draw(trees)])
    tree = draw(trees)
    if kind == "masked":
        mask = {"bias": draw(st.booleans()), "kernel": True}
        return together(f"masked[{mask}]", lambda inner: optax.masked(inner, mask), [tree])
    if kind == "MultiSteps":
        k = draw(st.integers(1, 3))
        both = together(f"MultiSteps[{k}]", lambda inner: every_step(inner, k), [tree], True)
        entries = tuple(entry._replace(every=k * entry.every) for entry in both.entries)
        return both._replace(entries=entries, every=k * both.every)
    if kind == "finite":
        return together("apply_if_finite", lambda inner: optax.apply_if_finite(inner, 3), [tree])
    if kind == "averaged":
        averages = lambda: optax_clr.average_at_cycle_ends(optax_clr.Cycles(3))
        return together("averaged", lambda inner: optax.chain(inner, averages()), [tree], True)
    if kind == "mechanic":
        return together("mechanize", optax.contrib.mechanize, [tree])
    gain = draw(varying)
    factory = lambda gain: optax.chain(tree.build(), optax.scale(gain))
    outer = together(
        f"inject[{gain}]",
        lambda _: optax_clr.inject_schedules(factory)(gain=given_as(gain)), [tree], True
    )  # fmt: skip
    return outer._replace(entries=(Entry("gain", gain, 1), *outer.entries))


# Three levels: leaves, wrapped, and wrapped again.
_shallow = st.one_of(leaves(), wrapped(leaves()))
trees = st.one_of(leaves(), wrapped(_shallow), wrapped(_shallow))


def by_name(entries):
    """The entries of each name."""
    return {name: [e for e in entries if e.name == name] for name in dict.fromkeys(
        entry.name for entry in entries)}  # fmt: skip


def assert_found(state, tree, values):
    """``values``: those of ``tree.entries``, in their order."""
    found = {}
    # What refuses the states of schedules that were passed to Optax itself.
    with contextlib.suppress(ValueError) if not tree.entries else contextlib.nullcontext():
        found = optax_clr.get_hyperparams(state)
    assert all(value.shape == () for value in found.values())
    assert len(found) == len(tree.entries)
    for name, entries in by_name(tree.entries).items():
        expected = [float(v) for v, e in zip(values, tree.entries, strict=True) if e.name == name]
        if len(entries) == 1:
            got = [found[name]]
        else:
            got = [value for path, value in found.items() if path.split("/")[-1] == name]
            assert name not in found
        # JAX's compiled programs round the schedules otherwise.
        np.testing.assert_allclose(sorted(got), sorted(expected), rtol=1e-6, err_msg=name)


def assert_own(state, *others):
    """Each array is a buffer of its own, and none is one of the others'."""
    pointers = lambda tree: [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]
    own = pointers(state)
    assert len(set(own)) == len(own)
    assert not set(own) & set(pointers(others))


@cases(1.0)
@given(trees)
def test_every_hyperparameter_is_found_where_it_was_built_in(tree):
    state = tree.build().init(PARAMS)
    assert_found(state, tree, [entry.at(0) for entry in tree.entries])


@cases(2.4)
@given(trees, st.data())
def test_what_is_set_is_found_and_nothing_else_has_changed(tree, data):
    assume(tree.entries)
    state = tree.build().init(PARAMS)
    before = jax.tree.leaves(state)
    name = data.draw(st.sampled_from([entry.name for entry in tree.entries]))
    value = data.draw(st.sampled_from([0.5, 2, np.float32(0.75), np.float64(0.1)]))
    entries = by_name(tree.entries)[name]
    if any(entry.is_scheduled for entry in entries):
        with pytest.raises(ValueError, match=f"{name} is driven by a schedule at"):
            optax_clr.set_hyperparams(state, **{name: value})
        return

    changed = optax_clr.set_hyperparams(state, **{name: value})
    expected = [value if entry.name == name else entry.at(0) for entry in tree.entries]
    assert_found(changed, tree, np.float32(expected))
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    after = jax.tree.leaves(changed)
    assert_own(changed, state)
    equal = lambda tree: sum(map(np.array_equal, jax.tree.leaves(tree), before))
    assert equal(changed) >= len(before) - len(entries)
    types = lambda leaves: [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]
    assert types(after) == types(before)

    # One place of several.
    if len(entries) > 1:
        paths = [path for path in optax_clr.get_hyperparams(state) if path.endswith("/" + name)]
        one = optax_clr.set_hyperparams(state, **{data.draw(st.sampled_from(paths)): value})
        assert equal(one) >= len(before) - 1


@cases(0.15)
@given(trees, st.sampled_from([0, 1, 2, 7, 1000, 2**31 - 100]), st.booleans())
def test_a_schedule_that_is_moved_goes_on_there(tree, step, compiled):
    optimizer = tree.build()
    state = optimizer.init(PARAMS)
    if not tree.has_counter:
        with pytest.raises(ValueError, match="no schedule whose step could be set"):
            optax_clr.set_step(state, step)
        return

    def go_on(state, step):
        moved = optax_clr.set_step(state, step)

        def update(state, _):
            return optimizer.update(PARAMS, state, PARAMS)[1], None

        if compiled:
            return moved, jax.lax.scan(update, moved, None, length=tree.every)[0]
        state = moved
        for _ in range(tree.every):
            state, _ = update(state, None)
        return moved, state

    moved, state = jax.jit(go_on)(state, step) if compiled else go_on(state, step)
    assert_found(
        state, tree, [entry.at(step + tree.every // entry.every - 1) for entry in tree.entries]
    )
    # The counters of moments stay, those of schedules do not.
    kinds = optax.ScaleByAdamState, optax.ScaleByScheduleState
    for node in jax.tree.leaves(moved, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, kinds):
            assert node.count == (0 if isinstance(node, optax.ScaleByAdamState) else step)


OF_OPTAX = re.compile(r"inject_hyperparams|mechanize|(?<!inject_schedules\()contrib\.")


@cases(0.1)
@given(trees, st.sampled_from(DTYPES), numbers)
def test_a_donating_step_runs_on_after_every_change(tree, dtype, value):
    """One compilation, the dtypes that were there, no buffer twice, in models of any precision."""
    constants = [name for name, entries in by_name(tree.entries).items()
                 if not any(entry.is_scheduled for entry in entries)]  # fmt: skip
    # Optax's own transformations may widen the updates of half precision, or fail on them.
    assume(dtype == jnp.float32 or not OF_OPTAX.search(tree.text))
    optimizer = tree.build()
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    gradients = jax.tree.map(jnp.copy, params)
    state = optimizer.init(params)
    traces = []

    @functools.partial(jax.jit, donate_argnums=1)
    def update(gradients, state, params):
        traces.append(None)
        return optimizer.update(gradients, state, params)[1]

    types = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    before = types(state)
    # Not Optax's own init, which may give the params themselves.
    state = optax_clr.set_hyperparams(state, **dict.fromkeys(constants, value))
    for step in (3, 5):
        state = update(gradients, state, params)
        if tree.has_counter:
            state = optax_clr.set_step(state, step)
        state = optax_clr.set_hyperparams(state, **dict.fromkeys(constants, value))
    assert jax.tree.all(jax.tree.map(lambda leaf: not leaf.is_deleted(), (params, gradients)))
    assert types(state) == before
    assert len(traces) == 1


@cases(0.15)
@given(trees, numbers)
def test_the_helpers_work_inside_jit(tree, value):
    constants = [name for name, entries in by_name(tree.entries).items()
                 if not any(entry.is_scheduled for entry in entries)]  # fmt: skip
    state = tree.build().init(PARAMS)

    @jax.jit
    def change(state, value, step):
        changed = optax_clr.set_hyperparams(state, **dict.fromkeys(constants, value))
        return optax_clr.set_step(changed, step) if tree.has_counter else changed

    got = change(state, jnp.float32(value), jnp.int32(3))
    expected = optax_clr.set_hyperparams(state, **dict.fromkeys(constants, value))
    expected = optax_clr.set_step(expected, 3) if tree.has_counter else expected
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for new, old in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        np.testing.assert_array_equal(new, old)
