"""Many range tests in one program: lanes, meshes of devices, processes, and values in any order."""

import functools
import json
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import compiling
import optax_clr
from forms import mostly_slow

pytestmark = pytest.mark.usefixtures("optax_promotion")

NUM_STEPS = 80
INPUTS = jax.random.normal(jax.random.key(0), (NUM_STEPS, 16, 4))
TARGETS = jnp.tanh(INPUTS @ jnp.array([1.0, -2.0, 0.5, 3.0]))
BATCHES = (INPUTS, TARGETS)


def new_params(seed):
    keys = jax.random.split(jax.random.key(seed))
    return {
        "hidden": 0.5 * jax.random.normal(keys[0], (4, 8)),
        "out": 0.5 * jax.random.normal(keys[1], (8,)),
    }


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["hidden"]) @ params["out"] - targets) ** 2)


# One function, so that what is compiled for one test is kept for the next.
without_decay = functools.partial(optax.adamw, weight_decay=0.0)


def run(seed, optimizer=without_decay, batches=BATCHES, max_lr=0.1):
    return optax_clr.lr_range_test(loss_fn, new_params(seed), optimizer, batches, max_lr=max_lr)


# That 0.1 is too low a rate to end with.
ignore_doubts = pytest.mark.filterwarnings("ignore::optax_clr.RangeTestWarning")

SEEDS, DECAYS = jnp.arange(3), jnp.array([0.0, 0.1, 1.0, 10.0])


@pytest.fixture
def mesh():
    """Eight devices of the host, also where there is an accelerator."""
    devices = jax.devices("cpu")
    with jax.default_device(devices[0]):
        yield jax.sharding.Mesh(np.array(devices), ("device",))


# --------------------------------------------------------------------------------------- lanes


def test_seeds_by_weight_decays_are_one_program():
    """The grid of Smith, arXiv 1803.09820, section 4.4."""
    traces = []

    def counted(params, batch):
        traces.append(None)
        return loss_fn(params, batch)

    def run_with(seed, weight_decay, loss_fn=loss_fn):
        optimizer = lambda rate: optax.adamw(rate, weight_decay=weight_decay)
        return optax_clr.lr_range_test(loss_fn, new_params(seed), optimizer, BATCHES, max_lr=0.1)

    over_decays = jax.vmap(functools.partial(run_with, loss_fn=counted), in_axes=(None, 0))
    grid = jax.jit(jax.vmap(over_decays, in_axes=(0, None)))(SEEDS, DECAYS)
    assert grid.losses.shape == (3, 4, NUM_STEPS)
    assert len(traces) == 1

    for i, j in [(0, 0), (2, 1), (1, 3)]:
        single = run_with(SEEDS[i], float(DECAYS[j]))
        np.testing.assert_allclose(grid.losses[i, j], single.losses, rtol=1e-3)


def test_map_gives_the_lanes_of_vmap():
    lanes = jax.vmap(run)(SEEDS)
    mapped = jax.lax.map(run, SEEDS)
    np.testing.assert_allclose(mapped.losses, lanes.losses, rtol=1e-3)
    np.testing.assert_array_equal(mapped.num_valid, lanes.num_valid)


def test_the_program_ends_with_its_last_lane():
    """Ten lanes whose loss is NaN from rows 20, 21, .. 29 on."""
    executed = []

    def step_fn(state, batch, value):
        jax.debug.callback(executed.append, batch)
        return state + 1, jnp.where(state < value, 1.0, jnp.nan)

    run_lane = lambda last: optax_clr.range_test(
        step_fn, jnp.float32(0), jnp.arange(1000), jnp.full(1000, last)
    )
    result = jax.vmap(run_lane)(jnp.arange(20.0, 30.0))
    jax.effects_barrier()
    np.testing.assert_array_equal(result.num_valid, np.arange(20, 30))
    # Of the chunk of rows in which the last lane ends, the rest is trained too.
    rows = {int(batch) for batch in executed}
    assert set(range(30)) <= rows <= set(range(128))


def test_lanes_share_their_batches():
    """A program that gathered a copy of each batch for each lane would hold a hundred of them."""
    lanes = jax.vmap(lambda seed: run(seed, max_lr=1e4))
    program = jax.jit(lanes).lower(jnp.arange(100)).compile()
    analysis = program.memory_analysis()
    if analysis is None:
        pytest.skip("this backend tells no sizes")
    batches_of_a_step = (INPUTS.nbytes + TARGETS.nbytes) // NUM_STEPS
    state = 100 * 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(new_params(0)))
    rows = 3 * 100 * NUM_STEPS * 4
    assert analysis.temp_size_in_bytes < 4 * (state + rows) + 50 * batches_of_a_step


# -------------------------------------------------------------------------------------- meshes


@ignore_doubts
def test_lanes_are_sharded_over_a_mesh(mesh):
    seeds = jax.device_put(jnp.arange(16), NamedSharding(mesh, P("device")))
    sharded = jax.jit(jax.vmap(run))(seeds)
    assert len(sharded.losses.sharding.device_set) == 8
    assert sharded.losses.addressable_shards[0].data.shape == (2, NUM_STEPS)
    np.testing.assert_allclose(sharded.losses, jax.vmap(run)(jnp.arange(16)).losses, rtol=1e-3)
    base_value, peak_value = sharded.bounds()
    assert 0 < base_value < peak_value


@ignore_doubts
@pytest.mark.parametrize("form", ["stacked", "traced", "streamed", "bar"])
def test_batches_are_sharded_over_a_mesh(mesh, form):
    split = NamedSharding(mesh, P(None, "device"))
    stacked = jax.device_put(BATCHES, split)
    params = jax.device_put(new_params(0), NamedSharding(mesh, P()))
    test = functools.partial(
        optax_clr.lr_range_test, loss_fn, params, optax.adam, max_lr=0.1, num_steps=NUM_STEPS
    )
    if form == "traced":
        result = test(lambda step: jax.tree.map(lambda part: part[step], stacked))
    elif form == "streamed":
        of_step = NamedSharding(mesh, P("device"))
        result = test([jax.device_put((x, y), of_step) for x, y in zip(*BATCHES, strict=True)])
    else:
        result = test(stacked, progress=form == "bar")
    single = optax_clr.lr_range_test(loss_fn, new_params(0), optax.adam, BATCHES, max_lr=0.1)
    np.testing.assert_allclose(result.losses, single.losses, rtol=1e-4)
    np.testing.assert_allclose(result.bounds(), single.bounds(), rtol=1e-2)


# The same training on two processes of two devices each, every process with half of each batch.
PROCESS = """
import json, sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=2, process_id=process,
    initialization_timeout=60,
)
sys.path.insert(0, sys.argv[3])
import optax, optax_clr, test_sweeps as t
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
half = slice(8 * process, 8 * process + 8)
as_global = lambda part, spec: jax.make_array_from_process_local_data(
    NamedSharding(mesh, spec), np.asarray(part)
)
stacked = tuple(as_global(part[:, half], P(None, "device")) for part in t.BATCHES)
stream = [
    tuple(as_global(part[step, half], P("device")) for part in t.BATCHES)
    for step in range(t.NUM_STEPS)
]
params = jax.tree.map(lambda leaf: as_global(leaf, P()), t.new_params(0))
curves = {}
for name, batches in {"stacked": stacked, "streamed": stream}.items():
    result = optax_clr.lr_range_test(
        t.loss_fn, params, optax.sgd, batches, min_lr=1e-3, max_lr=30.0, num_steps=t.NUM_STEPS
    )
    curves[name] = np.asarray(result.losses).tolist(), np.asarray(result.bounds()).tolist()
print(jax.process_count(), json.dumps(curves))
"""


@pytest.mark.slow
def test_two_processes_get_the_same_curve():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    here = str(pathlib.Path(__file__).parent)
    flags = " ".join(["--xla_force_host_platform_device_count=2", *compiling.FLAGS])
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(process), here],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    # A process whose partner has failed waits for it: the partner's error is worth more.
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (output.splitlines()[-1] for output, _ in outputs)  # gloo's lines before them
    assert first == second
    num_processes, _, text = first.partition(" ")
    assert num_processes == "2"

    single = optax_clr.lr_range_test(
        loss_fn, new_params(0), optax.sgd, BATCHES, min_lr=1e-3, max_lr=30.0
    )
    assert 10 < int(single.num_valid) < NUM_STEPS  # all stop, and none hangs
    for losses, bounds in json.loads(text).values():
        np.testing.assert_allclose(losses[:50], single.losses[:50], rtol=1e-4)
        assert np.isnan(losses[-1])
        np.testing.assert_allclose(bounds, single.bounds(), rtol=1e-2)


# -------------------------------------------------------------------------- values in any order


def noisy_valley(values):
    """Gradient descent on a noisy quadratic of curvature 1, from far away."""
    noise = 0.1 * jax.random.normal(jax.random.key(0), (len(values),))

    def step_fn(position, batch, rate):
        return position - rate * (position - batch), (position - batch) ** 2 / 2

    return optax_clr.range_test(step_fn, jnp.float32(5.0), noise, values)


@ignore_doubts
def test_a_falling_sweep_is_read_as_a_rising_one():
    rising = noisy_valley(np.geomspace(1e-3, 1.0, 400))
    falling = noisy_valley(np.geomspace(1e-3, 1.0, 400)[::-1])
    assert int(falling.num_valid) == 400
    np.testing.assert_array_equal(falling.learning_rates, rising.learning_rates[::-1])
    for result in (rising, falling):
        base_value, peak_value = result.bounds()
        assert 1e-3 < base_value < peak_value < 1.0


@ignore_doubts
def test_there_and_back_visits_the_rates_in_that_order_and_goes_on_training():
    up = np.geomspace(1e-3, 0.5, 150)
    result = noisy_valley(np.concatenate([up, up[::-1]]))
    assert int(result.num_valid) == 300
    np.testing.assert_allclose(result.learning_rates, np.concatenate([up, up[::-1]]), rtol=1e-6)
    # What the way up has learned is kept on the way down.
    assert result.losses[150:].mean() < 0.1 * result.losses[:50].mean()
    there, back = (
        optax_clr.RangeTestResult(
            result.learning_rates[part], result.losses[part], result.smoothed_losses[part], 150
        )
        for part in (slice(150), slice(150, 300))
    )
    assert there.bounds().base_value > 0
    with pytest.raises(optax_clr.RangeTestError, match="never fell"):
        back.suggest()


# ------------------------------------------------------------------------------- explicit axes


@pytest.fixture
def explicit_mesh():
    """What jax.make_mesh makes by default from JAX 0.9 on."""
    if not hasattr(jax.sharding, "AxisType") or not hasattr(jax, "set_mesh"):
        pytest.skip("this JAX has no explicit axes")
    explicit = (jax.sharding.AxisType.Explicit,)
    devices = jax.devices("cpu")
    mesh = jax.make_mesh((8,), ("device",), axis_types=explicit, devices=devices)
    with jax.default_device(devices[0]), jax.set_mesh(mesh):
        yield mesh


@pytest.mark.parametrize("test", mostly_slow(["sweep", "grid", "jitted"], usual=["sweep", "grid"]))
def test_lanes_over_explicit_axes(explicit_mesh, test):
    seeds = jax.device_put(jnp.arange(16), NamedSharding(explicit_mesh, P("device")))
    if test == "grid":
        grid = lambda seed: optax_clr.lr_grid_test(
            loss_fn, new_params(seed), optax.adamw, BATCHES, max_lr=0.1, num_steps=20
        )
        lanes, single = jax.vmap(grid)(seeds), grid(3)
    else:
        sweep = jax.vmap(run)
        lanes, single = (jax.jit(sweep) if test == "jitted" else sweep)(seeds), run(3)
    np.testing.assert_allclose(np.asarray(lanes.losses)[3], single.losses, rtol=1e-3)
    assert lanes.num_valid.shape == (16,)
    assert len(lanes.losses.sharding.device_set) == 8


def test_batches_over_explicit_axes(explicit_mesh):
    batches = jax.device_put(BATCHES, NamedSharding(explicit_mesh, P(None, "device")))
    result = run(0, batches=batches)
    np.testing.assert_allclose(result.losses, run(0).losses, rtol=1e-3)


@pytest.mark.parametrize("form", ["stacked", "streamed"])
def test_a_step_that_is_mapped_over_explicit_axes(explicit_mesh, form):
    """It asks for the axes of its batch, which JAX has in the type of an array."""
    rates = jnp.geomspace(1e-3, 0.1, 20)

    def step_fn(weights, batch, rate):
        def loss_and_gradient(weights, inputs, targets):
            loss_of = lambda weights: jnp.mean((inputs @ weights - targets) ** 2)
            return jax.lax.pmean(jax.value_and_grad(loss_of)(weights), "device")

        mapped = jax.shard_map(
            loss_and_gradient,
            mesh=explicit_mesh,
            in_specs=(P(), P("device"), P("device")),
            out_specs=(P(), P()),
            check_vma=False,  # or the gradient is summed over the devices before its mean
        )
        loss, gradient = mapped(weights, *batch)
        return weights - rate * gradient, loss

    spread = lambda leaf: jax.device_put(leaf, NamedSharding(explicit_mesh, P("device")))
    steps = [jax.tree.map(spread, batch) for batch in zip(*BATCHES, strict=True)][:20]
    stacked = jax.device_put(BATCHES, NamedSharding(explicit_mesh, P(None, "device")))
    weights, expected = jnp.zeros(4), []
    for batch, rate in zip(steps, rates, strict=True):
        weights, loss = jax.jit(step_fn)(weights, batch, rate)
        expected.append(float(loss))
    batches = stacked if form == "stacked" else steps
    result = optax_clr.range_test(step_fn, jnp.zeros(4), batches, rates)
    np.testing.assert_allclose(result.losses, expected, rtol=1e-4)


@pytest.mark.parametrize("axis", mostly_slow(["curves", "rows"], usual=["rows"]))
def test_curves_over_explicit_axes_are_read(explicit_mesh, axis):
    axes = ("device",) if axis == "curves" else (None, "device")
    rates = np.geomspace(1e-3, 10.0, 80, dtype=np.float32)
    centres = np.linspace(-1.5, -1.0, 8, dtype=np.float32)[:, None]
    losses = (np.log10(rates) - centres) ** 2
    plain = optax_clr.RangeTestResult(
        jnp.broadcast_to(rates, losses.shape), jnp.asarray(losses), jnp.asarray(losses), 80
    )
    spread = jax.tree.map(
        lambda column: jax.device_put(column, NamedSharding(explicit_mesh, P(*axes))), plain[:3]
    )
    result = optax_clr.RangeTestResult(*spread, 80)
    np.testing.assert_allclose(result.bounds(), plain.bounds(), rtol=1e-5)
    compiled = jax.jit(lambda result: result.bounds())(result)
    np.testing.assert_allclose(compiled, plain.bounds(), rtol=1e-5)
    rule = optax_clr.peer_rules.minimum
    np.testing.assert_allclose(rule(*spread[:2]), rule(*plain[:2]), rtol=1e-5)
