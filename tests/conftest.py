"""JAX made strict, for every test: what it would forgive in silence is an error here."""

import builtins
import functools
import gc
import os
import pathlib
import shutil

import compiling

# Eight devices, for the tests of meshes; set before JAX looks at it. What else runs uses the first.
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
# Most of the time is XLA's, compiling. Optimized programs are tested too, by .ci/run with the
# newest versions.
if not os.environ.get("OPTIMIZED"):
    flags += compiling.FLAGS
os.environ["XLA_FLAGS"] = " ".join(flags)

# What XLA compiles is kept: for the processes of a run, examples included, and for the next run.
COMPILED = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
MOST_BYTES = 500_000_000  # some five runs of programs that have all changed
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    if COMPILED.exists() and sum(file.stat().st_size for file in COMPILED.iterdir()) > MOST_BYTES:
        shutil.rmtree(COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest
from jax import numpy as jnp

import optax_clr
import strategies

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# GPUs and TPUs round the factors of a product to fewer bits by default, which is another curve.
jax.config.update("jax_default_matmul_precision", "highest")

# The same examples in every run: a failure is for everyone, and not gone tomorrow.
hypothesis.settings.register_profile(
    "default", derandomize=True, deadline=None, max_examples=100, print_blob=True
)
# Whether they fail, and not by which least example: for tests/tools/mutation.py.
hypothesis.settings.register_profile(
    "first_failure",
    hypothesis.settings.get_profile("default"),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
# Other examples each time: tests/tools/fuzz.py counts those of tests/fuzz_*.py.
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=7_500, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def _collections_look_at_what_is_new():
    """Those that tests ask for would look for seconds at all that earlier ones have compiled."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _names_in_doctests(doctest_namespace):
    doctest_namespace.update(jax=jax, jnp=jnp, optax_clr=optax_clr)


@pytest.fixture
def optax_promotion():
    """JAX's ordinary promotion, for tests that run Optax's optimizers, which rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def x64():
    """A context manager that turns 64-bit types on."""
    return strategies.x64


@pytest.fixture
def one_per_device():
    """shard_map over a mesh of one device, which checks what it would check on many."""
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("device",))
    spec = jax.sharding.PartitionSpec("device")
    if hasattr(jax, "shard_map"):
        shard_map = jax.shard_map
    else:  # before JAX 0.6, where the check knows no branches
        from jax.experimental.shard_map import shard_map as unchecked

        shard_map = functools.partial(unchecked, check_rep=False)
    return lambda function: shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)


@pytest.fixture
def sharded():
    """Call a function with an array whose last axis is sharded over a mesh of Explicit axes."""
    if not hasattr(jax, "set_mesh"):
        pytest.skip("a mesh has no Explicit axes before JAX 0.7")
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((8,), ("device",), axis_types=explicit, devices=jax.devices("cpu"))

    def call(function, steps):
        axes = [None] * (steps.ndim - 1) + ["device"]
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        with jax.set_mesh(mesh):
            values = function(jax.device_put(jnp.asarray(steps), sharding))
        assert all(each.sharding == sharding for each in jax.tree.leaves(values))
        return values

    return call


@pytest.fixture
def without_matplotlib(monkeypatch):
    """As where Matplotlib is not installed."""
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
